\set customer random(1, :customers)
\set studio random(1, :studios)
INSERT INTO bookings (id, "studioId", "customerId", "customerName", "customerEmail", "customerPhone", "preferredDate", "preferredTime", "updatedAt")
SELECT gen_random_uuid(), 'cm' || lpad(to_hex(:studio::bigint), 8, '0') || left(md5('studio:' || :studio), 15),
       c.id, c.name, c.email, coalesce(c.phone, ''), '2026-01-31', 'abends', now()
FROM customers AS c WHERE c.id = 'cm' || lpad(to_hex(:customer::bigint), 8, '0') || left(md5('customer:' || :customer), 15);
