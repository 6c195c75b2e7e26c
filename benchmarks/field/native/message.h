/* What both programs share: reading HTTP/1.1 messages as they arrive, growing buffers, the clock.
 *
 * A message is read piece by piece: feed() takes what a read brought and says how much of it
 * belonged to the message. The body is collected whole, without its chunks.
 */
#ifndef MESSAGE_H
#define MESSAGE_H

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define HEAD_MAX 16384
#define SECOND 1000000000LL

static inline int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

__attribute__((noreturn, format(printf, 1, 2))) static inline void fail(const char *words, ...)
{
    va_list arguments;
    va_start(arguments, words);
    vfprintf(stderr, words, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(2);
}

/* Bytes that grow. Memory is kept when they are emptied. */
struct bytes {
    char *data;
    size_t length, room;
};

static inline void need(struct bytes *bytes, size_t room)
{
    if (room <= bytes->room)
        return;
    bytes->room = room < 2 * bytes->room ? 2 * bytes->room : room;
    bytes->data = realloc(bytes->data, bytes->room);
    if (bytes->data == NULL)
        fail("out of memory");
}

static inline void append(struct bytes *bytes, const char *data, size_t length)
{
    if (length == 0)
        return;
    need(bytes, bytes->length + length);
    memcpy(bytes->data + bytes->length, data, length);
    bytes->length += length;
}

/* A whole file, with a 0 behind it that its length does not count. */
static inline struct bytes read_file(const char *path)
{
    struct bytes content = {0};
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        fail("%s: %s", path, strerror(errno));
    char piece[65536];
    size_t got;
    while ((got = fread(piece, 1, sizeof piece, file)) > 0)
        append(&content, piece, got);
    fclose(file);
    need(&content, content.length + 1);
    content.data[content.length] = 0;
    return content;
}

enum phase { IN_HEAD, IN_BODY, IN_SIZE, IN_CHUNK, AFTER_CHUNK, IN_TRAILER, UNTIL_CLOSE, COMPLETE, BROKEN };

struct message {
    enum phase phase;
    bool is_answer;
    bool closes;       /* the sender will close the connection behind it */
    int status;        /* of an answer */
    size_t left;       /* bytes still to come, of the body or of the chunk */
    size_t line;       /* length of the line so far, in the trailer */
    struct bytes body;
    size_t head_length;
    char head[HEAD_MAX + 1];
};

static inline void reset(struct message *message, bool is_answer)
{
    message->phase = IN_HEAD;
    message->is_answer = is_answer;
    message->head_length = 0;
    message->body.length = 0;
}

/* The value of a header field, or NULL. The head ends with a 0. */
static inline const char *field(const char *head, const char *name)
{
    size_t length = strlen(name);
    for (const char *line = strchr(head, '\n'); line != NULL; line = strchr(line, '\n')) {
        line++;
        if (strncasecmp(line, name, length) == 0 && line[length] == ':')
            return line + length + 1 + strspn(line + length + 1, " ");
    }
    return NULL;
}

static inline bool says(const char *value, const char *word)
{
    return value != NULL && strncasecmp(value, word, strlen(word)) == 0;
}

static inline void read_head(struct message *message)
{
    const char *head = message->head;
    const char *length = field(head, "content-length");
    const char *version = message->is_answer ? head : strstr(head, " HTTP/");
    message->status = message->is_answer && head[8] == ' ' ? atoi(head + 9) : 0;
    message->closes = says(field(head, "connection"), "close");
    message->left = 0;
    if (version == NULL || strstr(version, "HTTP/1.") == NULL)
        message->phase = BROKEN;
    else if (says(field(head, "transfer-encoding"), "chunked"))
        message->phase = IN_SIZE;
    else if (length != NULL) {
        message->left = strtoul(length, NULL, 10);
        message->phase = message->left > 0 ? IN_BODY : COMPLETE;
    } else
        message->phase = message->is_answer ? UNTIL_CLOSE : COMPLETE;
}

static inline size_t feed_head(struct message *message, const char *data, size_t length)
{
    size_t had = message->head_length, room = HEAD_MAX - had, taken = length < room ? length : room;
    memcpy(message->head + had, data, taken);
    size_t from = had > 3 ? had - 3 : 0;
    char *end = memmem(message->head + from, had + taken - from, "\r\n\r\n", 4);
    if (end == NULL) {
        message->head_length = had + taken;
        if (message->head_length == HEAD_MAX)
            message->phase = BROKEN;
        return taken;
    }
    message->head_length = end + 4 - message->head;
    message->head[message->head_length] = 0;
    read_head(message);
    return message->head_length - had;
}

static inline size_t feed_bytes(struct message *message, const char *data, size_t length)
{
    size_t taken = length < message->left ? length : message->left;
    append(&message->body, data, taken);
    message->left -= taken;
    if (message->left == 0)
        message->phase = message->phase == IN_BODY ? COMPLETE : AFTER_CHUNK;
    return taken;
}

/* One byte of what stands around chunks. Extensions are not understood. */
static inline void feed_frame(struct message *message, char byte)
{
    if (message->phase == AFTER_CHUNK) {
        if (byte == '\n')
            message->phase = IN_SIZE;
    } else if (message->phase == IN_TRAILER) {
        if (byte == '\n' && message->line == 0)
            message->phase = COMPLETE;
        message->line = byte == '\n' ? 0 : message->line + (byte != '\r');
    } else if (byte == '\n') {
        message->phase = message->left > 0 ? IN_CHUNK : IN_TRAILER;
        message->line = 0;
    } else if (byte != '\r') {
        int digit = byte <= '9' ? byte - '0' : (byte | 32) - 'a' + 10;
        if (digit < 0 || digit > 15)
            message->phase = BROKEN;
        message->left = 16 * message->left + digit;
    }
}

/* Take what belongs to the message, up to its end; how much that was. */
static inline size_t feed(struct message *message, const char *data, size_t length)
{
    size_t taken = 0;
    while (taken < length && message->phase < COMPLETE) {
        const char *rest = data + taken;
        if (message->phase == IN_HEAD)
            taken += feed_head(message, rest, length - taken);
        else if (message->phase == IN_BODY || message->phase == IN_CHUNK)
            taken += feed_bytes(message, rest, length - taken);
        else if (message->phase == UNTIL_CLOSE) {
            append(&message->body, rest, length - taken);
            taken = length;
        } else {
            feed_frame(message, *rest);
            taken++;
        }
    }
    return taken;
}

#endif
