// The Prisma CLI without its native engine, which could only be downloaded: its JavaScript engine over the driver pg.
// tests/app/prisma_cli.py sets the environment. For tests only: this engine splits scripts at every semicolon.
import path from "node:path";
import { PrismaPg } from "@prisma/adapter-pg";
import pg from "pg";
import { defineConfig } from "prisma/config";

// The adapter knows neither "char" (18) nor name (19), which the catalogue is full of; both read as text (25).
const addFields = pg.Result.prototype.addFields;
pg.Result.prototype.addFields = function (fields: { dataTypeID: number }[]) {
  for (const field of fields) {
    if (field.dataTypeID === 18 || field.dataTypeID === 19) field.dataTypeID = 25;
  }
  return addFields.call(this, fields);
};

// PostgreSQL 18 lists NOT NULL among the constraints, and the engine ends with a panic at one it does not know.
const query = pg.Client.prototype.query as (...parameters: any[]) => any;
pg.Client.prototype.query = function (config: any, ...rest: any[]) {
  if (typeof config?.text === "string") {
    config.text = config.text.replace("contype NOT IN ('p', 'u', 'f')", "contype NOT IN ('p', 'u', 'f', 'n')");
  }
  return query.call(this, config, ...rest);
};

// What the native engine reads: postgresql://user:password@host:port/database?host=<socket directory>&options=<settings>
function settingsOf(text: string | undefined): pg.PoolConfig {
  if (!text) throw new Error("Failed to configure Prisma: DATABASE_URL is not set. Run it through tests/app/prisma_cli.py.");
  const url = new URL(text);
  return {
    host: url.searchParams.get("host") ?? url.hostname,
    port: Number(url.port || 5432),
    user: decodeURIComponent(url.username),
    password: decodeURIComponent(url.password),
    database: decodeURIComponent(url.pathname.slice(1)),
    options: url.searchParams.get("options") ?? undefined,
  };
}

// The engine leaves the timer of its ten seconds for the advisory lock behind; nobody waits for it after the work is done.
const startTimer = globalThis.setTimeout;
globalThis.setTimeout = ((callback: () => void, delay?: number, ...rest: unknown[]) => {
  const timer = startTimer(callback, delay, ...rest);
  if (delay === 10_000) timer.unref();
  return timer;
}) as typeof setTimeout;

// The adapter drops a shadow database while it is still connected to it; here the session ends first.
class Adapter extends PrismaPg {
  constructor(private readonly settings: pg.PoolConfig) {
    super(settings);
  }

  async connectToShadowDb() {
    const database = `prisma_migrate_shadow_db_${crypto.randomUUID()}`;
    const main = await this.connect();
    await main.executeScript(`CREATE DATABASE "${database}"`);
    const shadow = await new PrismaPg({ ...this.settings, database }).connect();
    const disconnect = shadow.dispose.bind(shadow);
    shadow.dispose = async () => {
      await disconnect();
      await main.executeScript(`DROP DATABASE "${database}"`);
      await main.dispose();
    };
    return shadow;
  }
}

const directory = process.env.PRISMA_DIRECTORY ?? path.resolve("prisma");

export default defineConfig({
  experimental: { adapter: true },
  engine: "js",
  schema: path.join(directory, "schema.prisma"),
  migrations: { path: path.join(directory, "migrations") },
  // Discrete fields, never a connection string: commands that make a shadow database would run in the real one.
  adapter: async () =>
    new Adapter({
      ...settingsOf(process.env.DATABASE_URL),
      application_name: "prisma",
      // One session, as the advisory lock belongs to one; and an idle one does not keep Node alive.
      max: 1,
      allowExitOnIdle: true,
    }),
});
