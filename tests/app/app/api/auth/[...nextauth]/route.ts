import { handlers } from "@/auth";
import { atBasePath } from "@/lib/base-path";

export const GET = atBasePath(handlers.GET);
export const POST = atBasePath(handlers.POST);
