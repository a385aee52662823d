import { register } from "@/lib/registration";

export const POST = (request: Request) => register(request, "STUDIO_OWNER");
