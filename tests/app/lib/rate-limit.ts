// A sliding window for each key, in the memory of this process.
const times = new Map<string, number[]>();

// Counts one attempt; false when there were `limit` within the last `seconds` already.
export function withinLimit(key: string, limit: number, seconds: number): boolean {
  const now = Date.now();
  const recent = (times.get(key) ?? []).filter((time) => time > now - seconds * 1000);
  const allowed = recent.length < limit;
  if (allowed) recent.push(now);
  times.set(key, recent);
  if (times.size > 10_000) times.delete(times.keys().next().value as string);
  return allowed;
}
