import { NextResponse } from "next/server";
import { prisma } from "@/lib/database";

export const dynamic = "force-dynamic";

export async function GET() {
  const release = process.env.RELEASE_ID ?? null;
  try {
    await prisma.$queryRaw`SELECT 1`;
    return NextResponse.json({ status: "ok", database: true, release });
  } catch {
    return NextResponse.json({ status: "failed", database: false, release }, { status: 503 });
  }
}
