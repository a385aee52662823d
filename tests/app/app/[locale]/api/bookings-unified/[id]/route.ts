import { NextResponse } from "next/server";
import { broken } from "@/lib/broken";
import { prisma } from "@/lib/database";
import { refused, requireViewer } from "@/lib/permissions";

export async function GET(_request: Request, { params }: { params: Promise<{ id: string }> }) {
  const person = await requireViewer();
  if (person instanceof NextResponse) return person;
  const booking = await prisma.newBooking.findUnique({ where: { id: (await params).id } });
  if (!booking) return refused(404, "no such booking");
  const owned = await prisma.studioOwnership.count({ where: { studioId: booking.studioId, userId: person.id, acceptedAt: { not: null } } });
  // The same answer as for a booking that does not exist: whether it does is nobody else's business.
  if (booking.customerId !== person.id && !owned && !broken("booking-by-id-unchecked")) return refused(404, "no such booking");
  return NextResponse.json({ booking });
}
