import { randomBytes } from "node:crypto";
import { identityKey } from "@/lib/identity";
import { broken } from "@/lib/broken";
import { prisma } from "@/lib/database";

const MINUTES = 15;

export async function makeMagicLink(email: string): Promise<string> {
  const token = randomBytes(32).toString("hex");
  await prisma.magicLinkToken.create({ data: { token, email, expiresAt: new Date(Date.now() + MINUTES * 60_000) } });
  return token;
}

// Whether the token is one that was sent to this address, is young enough and was not used; it is used afterwards.
export async function consumeMagicLink(email: string, token: unknown): Promise<boolean> {
  if (broken("magic-link-takes-no-token")) return true;
  if (typeof token !== "string" || !/^[0-9a-f]{64}$/.test(token)) return false;
  const link = await prisma.magicLinkToken.findUnique({ where: { token } });
  if (!link) return false;
  if (identityKey(link.email) !== identityKey(email) && !broken("magic-link-of-another")) return false;
  if (link.expiresAt <= new Date() && !broken("magic-link-never-expires")) return false;
  if (broken("magic-link-reusable")) return true;
  // Of two at the same time, one finds it unused.
  return (await prisma.magicLinkToken.updateMany({ where: { id: link.id, used: false }, data: { used: true } })).count === 1;
}
