/*
 * The two base64 functions that libjwt calls, for the archive that Debian ships without libjwt's own: written for
 * slurm-factory's end-to-end test.
 */
#ifndef SLURM_FACTORY_E2E_BASE64_H
#define SLURM_FACTORY_E2E_BASE64_H

/* Encodes size bytes with padding and a final NUL; returns the length, NUL included. */
int jwt_Base64encode(char *encoded, const char *plain, int size);

/* Decodes up to the first character outside the alphabet; returns the number of bytes. */
int jwt_Base64decode(char *plain, const char *encoded);

#endif
