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

/* ---- Data ---------------------------------------------------------------------------------------------------------------- */

/*
 * Entries and objects of the buckets that the manifest grants; `abi.md` has the records. Each call returns a number from 0 up, or one of
 * these. At deploy there is no data: hob_bucket_open returns HOB_UNAVAILABLE.
 */
enum {
    HOB_NONE = -1, /* no such entry or object */
    HOB_DENIED = -2, /* the manifest does not grant it */
    HOB_NO_BUCKET = -3,
    HOB_INVALID = -4, /* an argument that no bucket takes */
    HOB_TOO_LARGE = -5,
    HOB_CONFLICT = -6, /* a condition does not hold */
    HOB_FULL = -7, /* the bucket, or the disk */
    HOB_BUSY = -8, /* too much waits for the disk: try again */
    HOB_DAMAGED = -9, /* not what was written */
    HOB_UNAVAILABLE = -10, /* at present, or here */
    HOB_LIMIT = -11, /* the instance holds as much as it may */
    HOB_WAITS = -12, /* of hob_kv_write alone: hob_answer_wait has the rest */
    HOB_PROHIBITED = -14, /* the operator does not let functions reach the address */
    HOB_TIMEOUT = -15, /* another server took too long */
    HOB_NO_SECRET = -16
};

/* Fixed part of an entry. After it: the value. */
typedef struct hob_entry_head {
    uint64_t version;
    uint64_t expires_ms; /* since 1970; 0 if it does not end */
} hob_entry_head;

/* Fixed part of an operation of hob_kv_write. After it: the key, then the value. They follow each other without gaps. */
typedef struct hob_op_head {
    uint32_t what; /* HOB_SET, HOB_DELETE or HOB_INCREMENT */
    uint32_t when; /* HOB_ALWAYS, HOB_ABSENT, or HOB_SAME: the version is `number` */
    uint32_t key_len;
    uint32_t value_len; /* 0 but for HOB_SET */
    uint64_t number; /* version of HOB_SAME; what HOB_INCREMENT adds */
    uint64_t ttl_ms; /* 0 for ever */
} hob_op_head;

enum { HOB_SET = 0, HOB_DELETE = 1, HOB_INCREMENT = 2 };
enum { HOB_ALWAYS = 0, HOB_ABSENT = 1, HOB_SAME = 2 };

/* What hob_kv_write answers for each operation. */
typedef struct hob_done {
    uint32_t what;
    uint32_t found; /* 1 if an entry was deleted */
    uint64_t version; /* of the entry now, or 0 */
    int64_t value; /* after HOB_INCREMENT, or 0 */
} hob_done;

/* Fixed part of an object's head. After it: the content type, then `metadata_count` pairs, each as a header. */
typedef struct hob_object_head {
    uint8_t etag[32]; /* SHA-256 of the bytes */
    uint64_t len;
    uint64_t version;
    uint64_t modified_ms;
    uint64_t expires_ms; /* 0 if it does not end */
    uint32_t content_type_len;
    uint32_t metadata_count;
} hob_object_head;

/* Fixed part of the options of hob_object_put. After it: content type and pairs, as in a head. */
typedef struct hob_put_options {
    uint32_t flags; /* HOB_HAS_DIGEST or 0 */
    uint32_t when; /* HOB_ALWAYS, HOB_ABSENT, or HOB_SAME: the ETag is `etag` */
    uint64_t ttl_ms; /* 0 for ever */
    uint8_t etag[32];
    uint8_t digest[32];
    uint32_t content_type_len;
    uint32_t metadata_count;
} hob_put_options;

#define HOB_HAS_DIGEST 1u

HOB_STATIC_ASSERT(sizeof(hob_entry_head) == 16, "an entry starts with 16 bytes");
HOB_STATIC_ASSERT(sizeof(hob_op_head) == 32, "an operation starts with 32 bytes");
HOB_STATIC_ASSERT(sizeof(hob_done) == 24, "an operation is answered with 24 bytes");
HOB_STATIC_ASSERT(sizeof(hob_object_head) == 72, "a head starts with 72 bytes");
HOB_STATIC_ASSERT(sizeof(hob_put_options) == 88, "options start with 88 bytes");

/* A handle of a granted bucket; the same for the same bucket. */
HOB_IMPORT("bucket_open") int32_t hob_bucket_open(const char *name, size_t name_len);

/*
 * A call with `buf` and `cap` returns the length of a record, and writes it to `buf` if it has at most `cap` bytes. If not, the host
 * keeps it for hob_answer_read, which copies at most `cap` bytes and returns the whole length; after an error it has the text.
 */
HOB_IMPORT("answer_read") int32_t hob_answer_read(void *buf, size_t cap);

/* Waits for the write that hob_kv_write began when it returned HOB_WAITS; answers as it would have. Once. */
HOB_IMPORT("answer_wait") int32_t hob_answer_wait(void *buf, size_t cap);

/* An entry: hob_entry_head and value. */
HOB_IMPORT("kv_get") int32_t hob_kv_get(int32_t bucket, const void *key, size_t key_len, void *buf, size_t cap);

/* 1 if there is an entry, 0 if not. */
HOB_IMPORT("kv_exists") int32_t hob_kv_exists(int32_t bucket, const void *key, size_t key_len);

/* Takes keys, each behind its uint32_t length; answers an entry for each behind its uint32_t length, or UINT32_MAX for none. */
HOB_IMPORT("kv_get_many") int32_t hob_kv_get_many(int32_t bucket, const void *keys, size_t keys_len, void *buf, size_t cap);

/* A page of entries, from the one after the key `after`; from the first if `after_len` is 0. */
HOB_IMPORT("kv_scan")
int32_t hob_kv_scan(int32_t bucket, const void *prefix, size_t prefix_len, const void *after, size_t after_len, uint32_t limit,
                    void *buf, size_t cap);

/* Makes operations in their order, all or none; answers a hob_done for each. HOB_WAITS if the bucket is durable. */
HOB_IMPORT("kv_write") int32_t hob_kv_write(int32_t bucket, const void *ops, size_t ops_len, void *buf, size_t cap);

/* The head of an object. */
HOB_IMPORT("object_head") int32_t hob_object_head_of(int32_t bucket, const void *key, size_t key_len, void *buf, size_t cap);

/* Opens an object: uint32_t handle, head. May wait while its digest is checked. */
HOB_IMPORT("object_open") int32_t hob_object_open(int32_t bucket, const void *key, size_t key_len, void *buf, size_t cap);

/* At most `cap` bytes, and at most 1 MiB, from `offset` on; 0 at the end. */
HOB_IMPORT("object_read") int32_t hob_object_read(int32_t object, uint64_t offset, void *buf, size_t cap);

HOB_IMPORT("object_close") void hob_object_close(int32_t object);

/* `len` bytes of an object from `offset` on, all that follow if `len` is below 0. Returns 0 if they are in memory, at out[0] and out[1]
   of them; 1 if out[1] bytes are to be fetched by hob_object_copy. */
HOB_IMPORT("object_map")
int32_t hob_object_map(int32_t bucket, const void *key, size_t key_len, int64_t offset, int64_t len, uint32_t out[2]);

/* Copies what the last hob_object_map that returned 1 has: all `len` bytes. */
HOB_IMPORT("object_copy") int32_t hob_object_copy(void *buf, size_t len);

/* Lets go of what hob_object_map put at this address. */
HOB_IMPORT("object_unmap") void hob_object_unmap(uint32_t address);

/* A page of objects, as hob_kv_scan. */
HOB_IMPORT("object_list")
int32_t hob_object_list(int32_t bucket, const void *prefix, size_t prefix_len, const void *after, size_t after_len, uint32_t limit,
                        void *buf, size_t cap);

/* Begins an object: a handle of the upload. `options` is a hob_put_options with what follows it, or nothing. */
HOB_IMPORT("object_put")
int32_t hob_object_put(int32_t bucket, const void *key, size_t key_len, const void *options, size_t options_len);

/* Appends; 0. After an error the upload is over. */
HOB_IMPORT("upload_write") int32_t hob_upload_write(int32_t upload, const void *bytes, size_t len);

/* Ends an upload: the object is there, and this is its head. The upload is over whatever the answer. */
HOB_IMPORT("upload_finish") int32_t hob_upload_finish(int32_t upload, void *buf, size_t cap);

/* Breaks an upload off. Nothing is left of it. */
HOB_IMPORT("upload_drop") void hob_upload_drop(int32_t upload);

/* Deletes an object, if it has this ETag unless `etag_len` is 0; the head of what was there. */
HOB_IMPORT("object_delete")
int32_t hob_object_delete(int32_t bucket, const void *key, size_t key_len, const void *etag, size_t etag_len, void *buf, size_t cap);

/*
 * Requests to other servers that the manifest grants; the numbers are those of data. `record` is a hob_request_head with flags
 * HOB_REQUEST_BODY_WHOLE and what follows it, with a URL as the target. Waits for the head of the response, and returns its handle.
 */
HOB_IMPORT("http_send") int32_t hob_http_send(const void *record, size_t len);

/* The head of a response: a hob_response_head and its headers, with a body_len of 0. Returns its length. */
HOB_IMPORT("http_head") int32_t hob_http_head(int32_t response, void *buf, size_t cap);

/* Waits for more of a response's body: how many bytes were written, 0 at the end. */
HOB_IMPORT("http_read") int32_t hob_http_read(int32_t response, void *buf, size_t cap);

/* Lets go of a response. */
HOB_IMPORT("http_close") void hob_http_close(int32_t response);

/* ---- Secrets -------------------------------------------------------------------------------------------------------------- */

/*
 * The value of a secret that the manifest grants; returns its length, or HOB_DENIED, HOB_NO_SECRET, HOB_DAMAGED, HOB_UNAVAILABLE. A longer
 * value than `cap` waits for hob_answer_read.
 */
HOB_IMPORT("secret_get") int32_t hob_secret_get(const char *name, size_t name_len, void *buf, size_t cap);

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
