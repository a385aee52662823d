import { NextResponse } from "next/server";
import { clientAddress } from "@/lib/audit";
import { prisma } from "@/lib/database";
import { readBody, readBooking } from "@/lib/input";
import { bookingsOf } from "@/lib/legacy-data";
import { refused, requireViewer, viewer } from "@/lib/permissions";
import { withinLimit } from "@/lib/rate-limit";

export async function GET() {
  const person = await requireViewer();
  if (person instanceof NextResponse) return person;
  return NextResponse.json({ bookings: await bookingsOf(person) });
}

export async function POST(request: Request) {
  if (!withinLimit(`booking ${await clientAddress()}`, 10, 3600)) return refused(429, "too many bookings");
  const input = readBooking(await readBody(request));
  if (!input) return refused(400, "studio, name, e-mail, date and time are needed");
  if (!(await prisma.studio.findUnique({ where: { id: input.studioId } }))) return refused(404, "no such studio");
  const person = await viewer();
  const customerId = person?.roles.includes("CUSTOMER") ? person.id : null;
  const booking = await prisma.booking.create({ data: { ...input, customerId } });
  return NextResponse.json({ booking: { id: booking.id, status: booking.status } }, { status: 201 });
}
