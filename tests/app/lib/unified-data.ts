// What the dashboards show, from the unified tables.
import { broken } from "@/lib/broken";
import { prisma } from "@/lib/database";

type Viewer = { id: string; email: string };

export const bookingsOf = (viewer: Viewer) =>
  prisma.newBooking.findMany({
    where: broken("bookings-of-everybody") ? {} : { customerId: viewer.id },
    include: { studio: { select: { name: true } } },
    orderBy: [{ createdAt: "desc" }, { id: "asc" }],
  });

export async function studiosOf(viewer: Viewer) {
  const studios = await prisma.studio.findMany({
    where: { ownerships: { some: { userId: viewer.id, acceptedAt: { not: null } } } },
    include: { newBookings: { orderBy: [{ createdAt: "desc" }, { id: "asc" }] } },
    orderBy: [{ name: "asc" }, { id: "asc" }],
  });
  return studios.map(({ newBookings, ...studio }) => ({ ...studio, bookings: newBookings }));
}

// A user's bookings go with him: they cannot be without one. His studios and what others booked there stay.
export async function removePerson(viewer: Viewer): Promise<void> {
  await prisma.$transaction([prisma.newBooking.deleteMany({ where: { customerId: viewer.id } }), prisma.user.delete({ where: { id: viewer.id } })]);
}
