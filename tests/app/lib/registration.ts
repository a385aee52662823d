// Signing up in the unified world: one address, one user, whichever form it came through.
import { randomBytes } from "node:crypto";
import { NextResponse } from "next/server";
import { audit, clientAddress } from "@/lib/audit";
import { broken } from "@/lib/broken";
import { prisma } from "@/lib/database";
import { findUser } from "@/lib/identity";
import { readBody, readRegistration } from "@/lib/input";
import { hashPassword } from "@/lib/passwords";
import { refused } from "@/lib/permissions";
import { withinLimit } from "@/lib/rate-limit";

export async function register(request: Request, role: "STUDIO_OWNER" | "CUSTOMER") {
  if (!withinLimit(`register ${await clientAddress()}`, 20, 3600)) return refused(429, "too many registrations");
  const input = readRegistration(await readBody(request));
  if (!input) return refused(400, "name, e-mail and a password of 10 to 72 characters are needed");
  if (await findUser(input.email)) return refused(409, "there is an account with this e-mail");
  const id = `c${randomBytes(12).toString("hex")}`;
  const roles = broken("registration-without-role") ? undefined : { create: { role, grantedBy: id } };
  const { password, ...person } = input;
  await prisma.user.create({ data: { id, ...person, password: await hashPassword(password), primaryRole: role, roles } });
  await audit({ action: "USER_REGISTERED", resource: "user", resourceId: id, userId: id, metadata: { role } });
  return NextResponse.json({ user: { id } }, { status: 201 });
}
