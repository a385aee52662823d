import { NextResponse } from "next/server";
import { prisma } from "@/lib/database";
import { readBody, readRegistration } from "@/lib/input";
import { hashPassword } from "@/lib/passwords";
import { refused } from "@/lib/permissions";

export async function POST(request: Request) {
  const input = readRegistration(await readBody(request));
  if (!input) return refused(400, "name, e-mail and a password of 10 to 72 characters are needed");
  if (await prisma.studioOwner.findUnique({ where: { email: input.email } })) return refused(409, "there is an account with this e-mail");
  const { name, email } = input;
  const owner = await prisma.studioOwner.create({ data: { name, email, password: await hashPassword(input.password) } });
  return NextResponse.json({ user: { id: owner.id } }, { status: 201 });
}
