\set customer random(:joined + 1, :customers)
UPDATE users SET email = 'neu.' || gen_random_uuid() || '@mail.example', "updatedAt" = now()
WHERE id = 'cm' || lpad(to_hex(:customer::bigint), 8, '0') || left(md5('customer:' || :customer), 15);
