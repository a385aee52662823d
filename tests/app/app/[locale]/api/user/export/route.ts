import { NextResponse } from "next/server";
import { auth, bookingsOf, studiosOf } from "@/auth";
import { refused } from "@/lib/permissions";

// Everything about the person who asks, and nobody else (Art. 15 GDPR): of his studios only what is his own.
export async function GET() {
  const person = (await auth())?.user;
  if (!person) return refused(401, "sign in first");
  const studios = (await studiosOf(person)).map(({ bookings: _bookings, ...studio }) => studio);
  const file = { person, bookings: await bookingsOf(person), studios };
  return NextResponse.json(file, { headers: { "Content-Disposition": 'attachment; filename="export.json"', "Cache-Control": "no-store" } });
}
