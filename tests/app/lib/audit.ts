import { headers } from "next/headers";
import { broken } from "@/lib/broken";
import { prisma } from "@/lib/database";

type Entry = { action: string; resource: string; resourceId: string; userId?: string | null; metadata?: Record<string, string | boolean> };

export async function clientAddress(): Promise<string> {
  return ((await headers()).get("x-forwarded-for") ?? "").split(",")[0].trim() || "unknown";
}

// Who did what, failures included. Never a password, a token or a whole address of somebody who has no account.
export async function audit({ userId = null, ...entry }: Entry): Promise<void> {
  if (entry.action.startsWith("LOGIN") && broken("login-without-audit")) return;
  const userAgent = (await headers()).get("user-agent");
  await prisma.auditLog.create({ data: { ...entry, userId, ipAddress: await clientAddress(), userAgent } });
}
