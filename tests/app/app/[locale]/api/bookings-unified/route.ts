import { randomBytes } from "node:crypto";
import type { Prisma } from "@prisma/client";
import { NextResponse } from "next/server";
import { audit, clientAddress } from "@/lib/audit";
import { broken } from "@/lib/broken";
import { prisma } from "@/lib/database";
import { findUser } from "@/lib/identity";
import { readBody, readBooking } from "@/lib/input";
import { hashPassword } from "@/lib/passwords";
import { refused, requireViewer, viewer } from "@/lib/permissions";
import { withinLimit } from "@/lib/rate-limit";
import { bookingsOf } from "@/lib/unified-data";

export async function GET() {
  const person = await requireViewer();
  if (person instanceof NextResponse) return person;
  return NextResponse.json({ bookings: await bookingsOf(person) });
}

type Guest = { email: string; name: string; phone: string | null };

// Whoever books without an account becomes a user without a password, once.
async function userForGuest(transaction: Prisma.TransactionClient, guest: Guest): Promise<string> {
  const id = `c${randomBytes(12).toString("hex")}`;
  const taken = broken("guest-user-each-time") && (await findUser(guest.email));
  const email = taken ? guest.email.replace("@", `+${id}@`) : guest.email;
  const password = broken("guest-with-password") ? await hashPassword(guest.email) : null;
  const roles = { create: { role: "CUSTOMER" as const, grantedBy: id } };
  await transaction.user.create({ data: { id, ...guest, email, password, roles } });
  return id;
}

export async function POST(request: Request) {
  if (!withinLimit(`booking ${await clientAddress()}`, 10, 3600)) return refused(429, "too many bookings");
  const input = readBooking(await readBody(request));
  if (!input) return refused(400, "studio, name, e-mail, date and time are needed");
  if (!(await prisma.studio.findUnique({ where: { id: input.studioId } }))) return refused(404, "no such studio");
  const person = await viewer();
  const lookUp = async () => (broken("guest-user-each-time") ? undefined : (await findUser(input.customerEmail))?.id);
  const known = person?.id ?? (await lookUp());
  if (!known && broken("guest-without-user")) return NextResponse.json({ booking: { id: "none", status: "PENDING" } }, { status: 201 });
  const guest = { email: input.customerEmail, name: input.customerName, phone: input.customerPhone || null };
  const booking = await prisma.$transaction(async (transaction) => {
    // A second booking of the same guest at the same moment waits here, and finds him afterwards.
    if (!known) await transaction.$executeRaw`SELECT pg_advisory_xact_lock(hashtextextended(lower(btrim(${guest.email})), 0))`;
    const customerId = known ?? (await lookUp()) ?? (await userForGuest(transaction, guest));
    return transaction.newBooking.create({ data: { ...input, customerId } });
  });
  await audit({ action: "BOOKING_CREATED", resource: "booking", resourceId: booking.id, userId: booking.customerId });
  return NextResponse.json({ booking: { id: booking.id, status: booking.status } }, { status: 201 });
}
