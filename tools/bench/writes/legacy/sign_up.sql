INSERT INTO customers (id, name, email, password, "updatedAt")
VALUES (gen_random_uuid(), 'Renée Smith', 'neu.' || gen_random_uuid() || '@mail.example', repeat('x', 60), now());
