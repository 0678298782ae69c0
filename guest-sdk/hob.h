/*
 * The handler ABI of Hob, version 1, for C and C++. abi.md beside this file is the contract; here it is for a compiler.
 *
 * A handler is a WebAssembly module for wasm32-wasip1 that exports `memory` and `hob_handle`. Hob calls `hob_handle` once, in
 * a fresh instance, and the response is complete when it returns. What may run before it is at the end of this file.
 *
 *     #include "hob.h"
 *
 *     static const char hello[] = "Hello, world!\n";
 *
 *     HOB_EXPORT void hob_handle(void) {
 *         static union { hob_response_head head; unsigned char bytes[sizeof(hob_response_head) + sizeof hello - 1]; } record;
 *         record.head.status = 200;
 *         record.head.body_len = sizeof hello - 1;
 *         __builtin_memcpy(record.bytes + sizeof record.head, hello, sizeof hello - 1);
 *         hob_respond(&record, sizeof record.bytes);
 *     }
 *
 *     clang --target=wasm32-wasi -mexec-model=reactor -O2 -o hello.wasm hello.c                      # with a WASI sysroot
 *     clang --target=wasm32 -nostdlib -Wl,--no-entry -O2 -o hello.wasm hello.c                       # without a C library
 *
 * With HOB_EXPORT the linker exports the function as `hob_handle`; `memory` is exported by default.
 * Integers are little-endian. A pointer or length that leaves the memory, or a record that breaks the rules, ends the invocation
 * with 502 and the code `guest-bad-call`.
 */
#ifndef HOB_H
#define HOB_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifdef __wasm__
#define HOB_IMPORT(name) __attribute__((import_module("hob1"), import_name(name)))
#define HOB_EXPORT_AS(name) __attribute__((visibility("default"), export_name(name)))
#else /* Lets other compilers read this header, for tests that bring their own host. */
#define HOB_IMPORT(name)
#define HOB_EXPORT_AS(name)
#endif
#define HOB_EXPORT HOB_EXPORT_AS("hob_handle")
#define HOB_EXPORT_INIT HOB_EXPORT_AS("hob_init")
#define HOB_EXPORT_RESTORED HOB_EXPORT_AS("hob_restored")

/* ---- Records ------------------------------------------------------------------------------------------------------------- */

/*
 * Fixed part of a request record. After it, without gaps: the method (`method_len` bytes), the target (`target_len`: path and
 * query as in the request line), `header_count` headers, and the inline body (`body_len`). Text is not terminated by NUL.
 */
typedef struct hob_request_head {
    uint32_t flags; /* HOB_REQUEST_BODY_WHOLE or 0 */
    uint16_t method_len;
    uint16_t header_count;
    uint32_t target_len;
    uint32_t body_len;
} hob_request_head;

/* The body in the record is all of it: hob_body_read would return 0. A body of at most 64 KiB with a content-length is inline. */
#define HOB_REQUEST_BODY_WHOLE 1u

/*
 * Fixed part of a header, in both records. After it: the name (lower case), then the value (any bytes but NUL, CR, LF).
 * Headers follow each other without gaps, so this struct lies unaligned: copy it out with memcpy.
 */
typedef struct hob_header_head {
    uint32_t name_len;
    uint32_t value_len;
} hob_header_head;

/*
 * Fixed part of a response record. After it, without gaps: `header_count` headers, then `body_len` bytes of body.
 * The host drops `hob-*` and the headers that frame the message, such as `content-length`.
 */
typedef struct hob_response_head {
    uint32_t flags; /* HOB_RESPONSE_MORE, HOB_RESPONSE_FAILED or 0 */
    uint16_t status; /* 200 to 599 */
    uint16_t header_count;
    uint32_t body_len;
} hob_response_head;

/* More of the body follows by hob_body_write, until hob_handle returns. */
#define HOB_RESPONSE_MORE 1u
/* The function failed: the client gets a 500 without details, the body of the record goes to the function's log. */
#define HOB_RESPONSE_FAILED 2u

#ifdef __cplusplus
#define HOB_STATIC_ASSERT static_assert
#else
#define HOB_STATIC_ASSERT _Static_assert
#endif
HOB_STATIC_ASSERT(sizeof(hob_request_head) == 16, "the request record starts with 16 bytes");
HOB_STATIC_ASSERT(sizeof(hob_header_head) == 8, "a header starts with 8 bytes");
HOB_STATIC_ASSERT(sizeof(hob_response_head) == 12, "the response record starts with 12 bytes");

/* ---- Host calls ---------------------------------------------------------------------------------------------------------- */

/* Writes the request record to `buf` if it has at most `cap` bytes, else nothing. Returns its length. May be called again. */
HOB_IMPORT("request_read") size_t hob_request_read(void *buf, size_t cap);

/*
 * Waits for more of the request body. Returns the number of bytes written to `buf`, 0 at the end, -1 when the client broke off.
 * What was inline in the record is not returned again.
 */
HOB_IMPORT("body_read") int32_t hob_body_read(void *buf, size_t cap);

/* Answers with a response record of `len` bytes. A second call ends the invocation. */
HOB_IMPORT("respond") void hob_respond(const void *record, size_t len);

/*
 * Waits until there is room, then sends `len` bytes of the body. Only after a response with HOB_RESPONSE_MORE. Returns 0, or -1
 * when nobody reads any more. To say that a body that has begun is not complete, trap.
 */
HOB_IMPORT("body_write") int32_t hob_body_write(const void *bytes, size_t len);

/* Levels of hob_log. */
enum { HOB_ERROR = 0, HOB_WARN = 1, HOB_INFO = 2, HOB_DEBUG = 3, HOB_TRACE = 4 };

/* One entry of the function's log: `len` bytes of UTF-8. A level above HOB_TRACE counts as HOB_TRACE. */
HOB_IMPORT("log") void hob_log(uint32_t level, const char *text, size_t len);

/* ---- What the guest defines ---------------------------------------------------------------------------------------------- */

/* Answers one request. Defined with HOB_EXPORT. */
void hob_handle(void);

/*
 * May be defined, with HOB_EXPORT_INIT. Runs once, at deploy, before the memory is kept that every instance begins with. Without
 * a snapshot it runs at each start. There is no request to read or to answer.
 */
void hob_init(void);

/*
 * May be defined, with HOB_EXPORT_RESTORED. Runs in every instance before hob_handle; at deploy too, before warm-up requests, so it
 * must do its work again, not once. It is the place to seed a generator of random numbers. It leaves the request alone.
 */
void hob_restored(void);

#ifdef __cplusplus
}
#endif

#endif /* HOB_H */
