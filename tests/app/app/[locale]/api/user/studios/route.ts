import { NextResponse } from "next/server";
import { auth } from "@/auth";
import { prisma } from "@/lib/database";
import { refused } from "@/lib/permissions";

export async function GET() {
  const person = (await auth())?.user;
  if (!person) return refused(401, "sign in first");
  if (!person.roles.includes("STUDIO_OWNER")) return refused(403, "not allowed");
  const studios = await prisma.studio.findMany({ where: { ownerId: person.id }, select: { id: true, name: true, city: true }, orderBy: { id: "asc" } });
  return NextResponse.json({ studios });
}
