import { NextResponse } from "next/server";
import { auth, removePerson } from "@/auth";
import { identityKey, readEmail } from "@/lib/identity";
import { readBody } from "@/lib/input";
import { refused } from "@/lib/permissions";

// Erases the person who asks (Art. 17 GDPR). He types his address to confirm.
export async function POST(request: Request) {
  const person = (await auth())?.user;
  if (!person) return refused(401, "sign in first");
  const typed = readEmail((await readBody(request)).email);
  if (!typed || identityKey(typed) !== identityKey(person.email)) return refused(400, "type your e-mail to confirm");
  await removePerson(person);
  return NextResponse.json({ deleted: true });
}
