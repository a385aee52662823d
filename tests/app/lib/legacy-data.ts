// What the dashboards show, from the legacy tables.
import { prisma } from "@/lib/database";

type Viewer = { id: string; email: string };

export const bookingsOf = (viewer: Viewer) =>
  prisma.booking.findMany({ where: { customerId: viewer.id }, include: { studio: { select: { name: true } } }, orderBy: [{ createdAt: "desc" }, { id: "asc" }] });

export const studiosOf = (viewer: Viewer) =>
  prisma.studio.findMany({
    where: { ownerId: viewer.id },
    include: { bookings: { orderBy: [{ createdAt: "desc" }, { id: "asc" }] } },
    orderBy: [{ name: "asc" }, { id: "asc" }],
  });

// Bookings stay with their studios, without the person; studios stay without an owner.
export async function removePerson(viewer: Viewer & { roles: string[] }): Promise<void> {
  const where = { id: viewer.id };
  if (!viewer.roles.includes("STUDIO_OWNER")) return void (await prisma.customer.delete({ where }));
  await prisma.$transaction([prisma.studio.updateMany({ where: { ownerId: viewer.id }, data: { ownerId: null } }), prisma.studioOwner.delete({ where })]);
}
