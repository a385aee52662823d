// Whose e-mail is whose: the identity key is the address without outer spaces, lower-cased in ASCII.
import type { User } from "@prisma/client";
import { broken } from "@/lib/broken";
import { prisma } from "@/lib/database";

export const identityKey = (email: string) => email.replace(/^ +| +$/g, "").replace(/[A-Z]/g, (letter) => letter.toLowerCase());

// An address as people type it into a form; null when it is none.
export function readEmail(value: unknown): string | null {
  return typeof value === "string" && value.length <= 254 && /^\s*[^\s@]+@[^\s@]+\s*$/.test(value) ? value.trim() : null;
}

export async function findUser(email: string): Promise<User | null> {
  if (broken("email-case-sensitive")) return prisma.user.findUnique({ where: { email } });
  // Not Prisma's `mode: insensitive`: that is ILIKE, where an underscore stands for any letter.
  const found = await prisma.$queryRaw<{ id: string }[]>`
    SELECT id FROM users WHERE lower(btrim(email) COLLATE "C") = ${identityKey(email)} ORDER BY email = ${email} DESC, id LIMIT 1`;
  return found.length ? prisma.user.findUnique({ where: { id: found[0].id } }) : null;
}

export async function rolesOf(userId: string): Promise<string[]> {
  const granted = await prisma.userRoleAssignment.findMany({
    where: { userId, studioId: null, OR: [{ expiresAt: null }, { expiresAt: { gt: new Date() } }] },
    select: { role: true },
  });
  return [...new Set(granted.map((assignment) => String(assignment.role)))].sort();
}

export const mayEnter = (user: Pick<User, "isActive" | "isSuspended">) =>
  user.isActive && (!user.isSuspended || broken("suspension-ignored"));
