import { NextResponse } from "next/server";
import { auth } from "@/auth-unified";
import { broken } from "@/lib/broken";
import { prisma } from "@/lib/database";
import { refused } from "@/lib/permissions";

export async function GET() {
  if (broken("route-missing")) return new NextResponse("This page could not be found.", { status: 404 });
  const person = (await auth())?.user;
  if (!person) return refused(401, "sign in first");
  if (!person.roles.includes("STUDIO_OWNER") && !broken("role-unchecked")) return refused(403, "not allowed");
  const owned = await prisma.studioOwnership.findMany({
    where: { userId: person.id, acceptedAt: { not: null } },
    select: { studio: { select: { id: true, name: true, city: true } } },
    orderBy: { studioId: "asc" },
  });
  return NextResponse.json({ studios: owned.map(({ studio }) => studio) });
}
