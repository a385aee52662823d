\set customer random(:joined + 1, :customers)
\set number random(1000000, 9999999)
UPDATE users SET name = 'Zoë ' || :number, phone = '+49 151 ' || :number, "updatedAt" = now()
WHERE id = 'cm' || lpad(to_hex(:customer::bigint), 8, '0') || left(md5('customer:' || :customer), 15);
