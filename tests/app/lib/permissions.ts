// Who may do what. Routes call these and pass the answer on when it is a Response.
import { NextResponse } from "next/server";
import { auth } from "@/auth";
import { broken } from "@/lib/broken";

export type Viewer = { id: string; email: string; name: string | null; roles: string[] };

export const refused = (status: number, error: string) => NextResponse.json({ error }, { status });

export async function viewer(): Promise<Viewer | null> {
  return (await auth())?.user ?? null;
}

export async function requireViewer(): Promise<Viewer | NextResponse> {
  return (await viewer()) ?? refused(401, "sign in first");
}

export async function requireRole(role: string): Promise<Viewer | NextResponse> {
  const person = await viewer();
  if (!person) return refused(401, "sign in first");
  return person.roles.includes(role) || broken("role-unchecked") ? person : refused(403, "not allowed");
}
