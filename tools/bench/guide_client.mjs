// Goes row by row as the migration guide's script does: Prisma Client, one interactive transaction, a look-up and a create
// for each row. Works on a sample of customers and of their bookings, and prints how many rows it wrote in how many seconds.
import { createRequire } from "node:module";

// Packages are those of the directory it is started in: the reference application's installation.
const require = createRequire(`${process.cwd()}/`);
const { PrismaClient } = require("@prisma/client");
const { PrismaPg } = require("@prisma/adapter-pg");

const { PGHOST: host, PGPORT: port, PGUSER: user, PGPASSWORD: password, PGDATABASE: database, SAMPLE } = process.env;
const sample = Number(SAMPLE);
const prisma = new PrismaClient({ adapter: new PrismaPg({ host, port: Number(port), user, password, database }) });
const customers = await prisma.customer.findMany({ take: Math.floor(sample / 3), orderBy: { id: "asc" } });
const bookings = await prisma.booking.findMany({ where: { customerId: { in: customers.map(({ id }) => id) } }, take: sample });

let rows = 0;
const started = performance.now();
await prisma.$transaction(
  async (tx) => {
    for (const customer of customers) {
      if (await tx.user.findUnique({ where: { email: customer.email } })) continue;
      await tx.user.create({ data: { ...customer, primaryRole: "CUSTOMER" } });
      await tx.userRoleAssignment.create({ data: { id: `r${customer.id}`, userId: customer.id, role: "CUSTOMER" } });
      rows += 2;
    }
    for (const booking of bookings) {
      const found = await tx.user.findUnique({ where: { email: booking.customerEmail } });
      await tx.newBooking.create({ data: { ...booking, customerId: found ? found.id : customers[0].id } });
      rows += 1;
    }
  },
  { timeout: 300_000 },
);
console.log(JSON.stringify({ rows, seconds: (performance.now() - started) / 1000 }));
await prisma.$disconnect();
