#include "base64.h"

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

int jwt_Base64encode(char *encoded, const char *plain, int size)
{
	const unsigned char *in = (const unsigned char *) plain;
	char *out = encoded;
	int at, left;

	for (at = 0; at < size; at += 3) {
		unsigned long group = (unsigned long) in[at] << 16;

		left = size - at;
		if (left > 1)
			group |= (unsigned long) in[at + 1] << 8;
		if (left > 2)
			group |= in[at + 2];
		*out++ = alphabet[group >> 18 & 63];
		*out++ = alphabet[group >> 12 & 63];
		*out++ = left > 1 ? alphabet[group >> 6 & 63] : '=';
		*out++ = left > 2 ? alphabet[group & 63] : '=';
	}
	*out++ = '\0';
	return (int) (out - encoded);
}

static int value_of(char letter)
{
	int value;

	for (value = 0; value < 64; value++)
		if (alphabet[value] == letter)
			return value;
	return -1;
}

int jwt_Base64decode(char *plain, const char *encoded)
{
	unsigned long bits = 0;
	int held = 0, size = 0, value;

	while ((value = value_of(*encoded++)) >= 0) {
		bits = (bits << 6 | (unsigned long) value) & 0xffffff;
		held += 6;
		if (held >= 8) {
			held -= 8;
			plain[size++] = (char) (bits >> held & 0xff);
		}
	}
	return size;
}
