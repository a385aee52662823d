import type { NextConfig } from "next";

// Both are decided at build time, as in every Next.js application: where it is served, and whether it can be broken on purpose.
const config: NextConfig = {
  basePath: process.env.NEXT_PUBLIC_BASE_PATH || undefined,
  env: { TEST_BUILD: process.env.TEST_BUILD ?? "" },
  poweredByHeader: false,
  devIndicators: false,
};

export default config;
