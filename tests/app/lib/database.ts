import { PrismaPg } from "@prisma/adapter-pg";
import { PrismaClient } from "@prisma/client";

// One pool for the process; the development server loads modules more than once.
const shared = globalThis as unknown as { prisma?: PrismaClient };

function connect(): PrismaClient {
  const url = new URL(process.env.DATABASE_URL ?? "postgresql://");
  return new PrismaClient({
    adapter: new PrismaPg({
      host: url.searchParams.get("host") ?? url.hostname,
      port: Number(url.port || 5432),
      user: decodeURIComponent(url.username),
      password: decodeURIComponent(url.password),
      database: decodeURIComponent(url.pathname.slice(1)),
      application_name: "reference-application",
      max: 5,
    }),
  });
}

export const prisma = (shared.prisma ??= connect());
