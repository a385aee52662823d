import { NextResponse } from "next/server";
import { prisma } from "@/lib/database";
import { readBody, readStudio } from "@/lib/input";
import { refused, requireRole } from "@/lib/permissions";

export async function GET() {
  const studios = await prisma.studio.findMany({ select: { id: true, name: true, city: true }, orderBy: { id: "asc" }, take: 50 });
  return NextResponse.json({ studios });
}

export async function POST(request: Request) {
  const owner = await requireRole("STUDIO_OWNER");
  if (owner instanceof NextResponse) return owner;
  const input = readStudio(await readBody(request));
  if (!input) return refused(400, "name, address, city, phone and e-mail are needed");
  const studio = await prisma.studio.create({ data: { ...input, ownerId: owner.id } });
  return NextResponse.json({ studio: { id: studio.id } }, { status: 201 });
}
