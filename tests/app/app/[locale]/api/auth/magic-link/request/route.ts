import { NextResponse } from "next/server";
import { audit, clientAddress } from "@/lib/audit";
import { publicUrl } from "@/lib/base-path";
import { findUser, identityKey, mayEnter, readEmail } from "@/lib/identity";
import { readBody } from "@/lib/input";
import { makeMagicLink } from "@/lib/magic-link";
import { sendMail } from "@/lib/mail";
import { refused } from "@/lib/permissions";
import { withinLimit } from "@/lib/rate-limit";

export async function POST(request: Request, { params }: { params: Promise<{ locale: string }> }) {
  const email = readEmail((await readBody(request)).email);
  if (!email) return refused(400, "an e-mail is needed");
  if (!withinLimit(`link ${await clientAddress()}`, 30, 3600) || !withinLimit(`link ${identityKey(email)}`, 6, 3600)) return refused(429, "too many links");
  const user = await findUser(email);
  if (user && mayEnter(user)) {
    const query = new URLSearchParams({ token: await makeMagicLink(user.email), email: user.email });
    const link = `${publicUrl(`/${(await params).locale}/api/auth/magic-link/verify`)}?${query}`;
    await sendMail({ to: user.email, subject: "Ihr Anmelde-Link", text: `Mit diesem Link melden Sie sich an. Er gilt 15 Minuten:\n\n${link}\n` });
    await audit({ action: "MAGIC_LINK_REQUESTED", resource: "user", resourceId: user.id, userId: user.id });
  }
  // The same answer whether there is such a person or not.
  return NextResponse.json({ sent: true });
}
