// Next.js strips its base path from the URLs that route handlers see, and next-auth builds its own URLs without one.
import { NextRequest } from "next/server";

export const BASE_PATH = process.env.NEXT_PUBLIC_BASE_PATH ?? "";
export const AUTH_PATH = `${BASE_PATH}/api/auth`;

type Handler = (request: NextRequest) => Promise<Response>;

// Gives a handler of next-auth the URL that the browser asked for.
export function atBasePath(handler: Handler): Handler {
  return (request) => {
    const { origin, pathname, search } = new URL(request.url);
    const path = pathname.startsWith(`${AUTH_PATH}/`) ? pathname : BASE_PATH + pathname;
    return handler(new NextRequest(origin + path + search, request));
  };
}

// The address a person's browser knows the application under.
export function publicUrl(path: string): string {
  return new URL(BASE_PATH + path, process.env.AUTH_URL).toString();
}
