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
