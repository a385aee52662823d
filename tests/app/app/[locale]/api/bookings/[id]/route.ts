import { NextResponse } from "next/server";
import { prisma } from "@/lib/database";
import { refused, requireViewer } from "@/lib/permissions";

export async function GET(_request: Request, { params }: { params: Promise<{ id: string }> }) {
  const person = await requireViewer();
  if (person instanceof NextResponse) return person;
  const booking = await prisma.booking.findUnique({ where: { id: (await params).id }, include: { studio: { select: { ownerId: true } } } });
  if (!booking || (booking.customerId !== person.id && booking.studio.ownerId !== person.id)) return refused(404, "no such booking");
  const { studio: _studio, ...shown } = booking;
  return NextResponse.json({ booking: shown });
}
