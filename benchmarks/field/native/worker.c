/* A worker that answers at once with what its script holds.
 *
 *     worker SCRIPT [LISTENERS]
 *
 * It prints "listens on http://127.0.0.1:PORT" for each listener and serves until it is ended. The
 * script is a row of records, each a line and as many bytes as the line's last number says:
 *
 *     page PATH LENGTH                  answers any request for that path
 *     answer KEY LENGTH                 answers /generate whose max_new_tokens is KEY
 *     stream KEY INTERVAL_US LENGTH     the same with "stream": true, as server-sent events; all of
 *                                       them at once, or one every so many microseconds
 *
 * Where a body holds ID_MARK, the request's own rid is put, or a number that counts requests.
 */
#define _GNU_SOURCE
#include "message.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define ID_MARK "@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@"
#define ID_LENGTH 32
#define RECORDS_MAX 256
#define BATCH 256

struct connection {
    int fd;
    bool is_listener, wants_room;
    const struct record *record; /* what is being sent; NULL: a request is being read */
    struct bytes out;            /* the record's bytes, with the id of this answer */
    size_t sent, pieces;         /* bytes sent, and pieces that may be sent by now */
    int64_t due;                 /* when the next piece may */
    TAILQ_ENTRY(connection) place;
    struct message request;
};

/* One answer, as it goes over the wire. Marks and ends are places in its bytes. */
struct record {
    char path[64];
    long key;
    bool is_stream;
    int64_t interval;
    struct bytes wire;
    size_t *ends, end_count, *marks, mark_count;
    TAILQ_HEAD(, connection) waiting; /* whose next piece is not due yet, the soonest first */
};

static struct record records[RECORDS_MAX];
static int record_count;
static struct record nothing_here;
static int epoll_fd, timer_fd;
static char scratch[1 << 18];
static unsigned long requests;

static void push(size_t **places, size_t *count, size_t place)
{
    if ((*count & (*count - 1)) == 0)
        *places = realloc(*places, sizeof(size_t) * (*count ? 2 * *count : 1));
    (*places)[(*count)++] = place;
}

/* ---- the script ---- */

static void add_text(struct bytes *wire, const char *format, ...)
{
    char line[256];
    va_list arguments;
    va_start(arguments, format);
    append(wire, line, vsnprintf(line, sizeof line, format, arguments));
    va_end(arguments);
}

static void frame_whole(struct record *record, int status, const char *body, size_t length)
{
    add_text(&record->wire, "HTTP/1.1 %d %s\r\ncontent-type: application/json\r\n", status,
             status == 200 ? "OK" : "Not Found");
    add_text(&record->wire, "content-length: %zu\r\n\r\n", length);
    append(&record->wire, body, length);
    push(&record->ends, &record->end_count, record->wire.length);
}

/* Each event is a chunk. Where there is no interval, all are one piece. */
static void frame_stream(struct record *record, const char *body, size_t length)
{
    add_text(&record->wire, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                            "transfer-encoding: chunked\r\n\r\n");
    for (const char *event = body; event < body + length;) {
        char *blank = memmem(event, body + length - event, "\n\n", 2);
        if (blank == NULL)
            fail("an event does not end");
        size_t size = blank + 2 - event;
        add_text(&record->wire, "%zx\r\n", size);
        append(&record->wire, event, size);
        add_text(&record->wire, "\r\n");
        event += size;
        if (event == body + length)
            add_text(&record->wire, "0\r\n\r\n");
        if (record->interval > 0 || event == body + length)
            push(&record->ends, &record->end_count, record->wire.length);
    }
}

static void find_marks(struct record *record)
{
    const char *data = record->wire.data, *end = data + record->wire.length;
    for (char *at = memmem(data, end - data, ID_MARK, ID_LENGTH); at != NULL;
         at = memmem(at + ID_LENGTH, end - at - ID_LENGTH, ID_MARK, ID_LENGTH))
        push(&record->marks, &record->mark_count, at - data);
}

static void load_script(const char *path)
{
    struct bytes script = read_file(path);
    for (char *at = script.data; at < script.data + script.length;) {
        if (record_count == RECORDS_MAX)
            fail("%s: more than %d records", path, RECORDS_MAX);
        struct record *record = &records[record_count++];
        char *body = strchr(at, '\n');
        size_t length = 0;
        long interval_us = 0;
        if (sscanf(at, "page %63s %zu", record->path, &length) != 2 &&
            sscanf(at, "answer %ld %zu", &record->key, &length) != 2) {
            if (sscanf(at, "stream %ld %ld %zu", &record->key, &interval_us, &length) != 3)
                fail("%s: no record at byte %td", path, at - script.data);
            record->is_stream = true;
        }
        if (body == NULL || body + 1 + length > script.data + script.length)
            fail("%s: a record is cut off", path);
        record->interval = interval_us * 1000;
        TAILQ_INIT(&record->waiting);
        if (record->is_stream)
            frame_stream(record, body + 1, length);
        else
            frame_whole(record, 200, body + 1, length);
        find_marks(record);
        at = body + 1 + length;
    }
    frame_whole(&nothing_here, 404, "{}", 2);
}

/* ---- what a request asks for ---- */

/* What follows a JSON key, or NULL. */
static const char *value_of(const struct bytes *body, const char *quoted_key)
{
    const char *found = memmem(body->data, body->length, quoted_key, strlen(quoted_key));
    if (found == NULL)
        return NULL;
    found += strlen(quoted_key);
    return found + strspn(found, " :");
}

static const struct record *find_record(struct message *request)
{
    const char *path = strchr(request->head, ' ') + 1;
    size_t length = strcspn(path, " ?");
    for (int i = 0; i < record_count; i++)
        if (strlen(records[i].path) == length && strncmp(records[i].path, path, length) == 0)
            return &records[i];
    if (length != strlen("/generate") || strncmp(path, "/generate", length) != 0)
        return &nothing_here;
    const char *key = value_of(&request->body, "\"max_new_tokens\"");
    const char *stream = value_of(&request->body, "\"stream\"");
    bool is_stream = says(stream, "true");
    for (int i = 0; key != NULL && i < record_count; i++)
        if (records[i].key == atol(key) && records[i].is_stream == is_stream && !records[i].path[0])
            return &records[i];
    return &nothing_here;
}

static void write_id(const struct bytes *body, char id[ID_LENGTH])
{
    char counted[ID_LENGTH + 1];
    snprintf(counted, sizeof counted, "%032lx", ++requests);
    memcpy(id, counted, ID_LENGTH);
    const char *rid = value_of(body, "\"rid\"");
    if (rid != NULL && *rid == '"') {
        size_t length = strcspn(rid + 1, "\"");
        memcpy(id, rid + 1, length < ID_LENGTH ? length : ID_LENGTH);
    }
}

/* ---- sending ---- */

static void watch(struct connection *connection, bool wants_room)
{
    if (connection->wants_room == wants_room)
        return;
    connection->wants_room = wants_room;
    struct epoll_event event = {.events = EPOLLIN | (wants_room ? EPOLLOUT : 0)};
    event.data.ptr = connection;
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, connection->fd, &event);
}

static void wait_turn(struct connection *connection)
{
    struct record *record = (struct record *)connection->record;
    connection->due += record->interval;
    TAILQ_INSERT_TAIL(&record->waiting, connection, place);
}

static bool is_waiting(const struct connection *connection)
{
    return connection->record != NULL && connection->pieces < connection->record->end_count;
}

/* Send what may be sent by now. A connection that fails is shut down; its event closes it. */
static void flush(struct connection *connection)
{
    const struct record *record = connection->record;
    size_t until = record->ends[connection->pieces - 1];
    while (connection->sent < until) {
        ssize_t done = send(connection->fd, connection->out.data + connection->sent,
                            until - connection->sent, MSG_NOSIGNAL);
        if (done < 0) {
            if (errno == EAGAIN)
                watch(connection, true);
            else
                shutdown(connection->fd, SHUT_RDWR);
            return;
        }
        connection->sent += done;
    }
    watch(connection, false);
    if (connection->pieces < record->end_count)
        return;
    connection->record = NULL;
    if (connection->request.closes)
        shutdown(connection->fd, SHUT_RDWR);
    reset(&connection->request, false);
}

static void answer(struct connection *connection)
{
    struct bytes *body = &connection->request.body;
    need(body, body->length + 1);
    body->data[body->length] = 0;
    const struct record *record = find_record(&connection->request);
    connection->out.length = 0;
    append(&connection->out, record->wire.data, record->wire.length);
    if (record->mark_count > 0) {
        char id[ID_LENGTH];
        write_id(body, id);
        for (size_t i = 0; i < record->mark_count; i++)
            memcpy(connection->out.data + record->marks[i], id, ID_LENGTH);
    }
    connection->record = record;
    connection->sent = 0;
    connection->pieces = 1;
    connection->due = now_ns();
    if (record->end_count > 1)
        wait_turn(connection);
    flush(connection);
}

/* Let go what is due, and set the timer for what comes next. */
static void send_due(void)
{
    int64_t now = now_ns(), next = INT64_MAX;
    for (struct record *record = records; record < records + record_count; record++) {
        struct connection *first;
        while ((first = TAILQ_FIRST(&record->waiting)) != NULL && first->due <= now) {
            TAILQ_REMOVE(&record->waiting, first, place);
            first->pieces++;
            if (is_waiting(first))
                wait_turn(first);
            flush(first);
        }
        if (first != NULL && first->due < next)
            next = first->due;
    }
    static int64_t set;
    if (next == set || next == INT64_MAX)
        return;
    set = next;
    struct itimerspec at = {.it_value = {.tv_sec = next / SECOND, .tv_nsec = next % SECOND}};
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
}

/* ---- connections ---- */

static void add(struct connection *connection)
{
    struct epoll_event event = {.events = EPOLLIN};
    event.data.ptr = connection;
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, connection->fd, &event) < 0)
        fail("epoll: %s", strerror(errno));
}

static struct connection *new_connection(int fd, bool is_listener)
{
    struct connection *connection = calloc(1, sizeof *connection);
    if (connection == NULL)
        fail("out of memory");
    connection->fd = fd;
    connection->is_listener = is_listener;
    add(connection);
    return connection;
}

static void drop(struct connection *connection)
{
    if (is_waiting(connection)) {
        struct record *record = (struct record *)connection->record;
        TAILQ_REMOVE(&record->waiting, connection, place);
    }
    close(connection->fd);
    free(connection->out.data);
    free(connection->request.body.data);
    free(connection);
}

static void accept_all(int listener)
{
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        new_connection(fd, false);
    }
}

/* What has come. A client that says something before it has its answer is not understood. */
static void receive(struct connection *connection)
{
    ssize_t got = recv(connection->fd, scratch, sizeof scratch, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    struct message *request = &connection->request;
    if (got > 0 && connection->record == NULL) {
        feed(request, scratch, got);
        if (request->phase == COMPLETE)
            answer(connection);
        if (request->phase != BROKEN)
            return;
    }
    drop(connection);
}

static void handle(struct connection *connection, uint32_t events)
{
    if (connection == NULL) {
        uint64_t times;
        if (read(timer_fd, &times, sizeof times) < 0 && errno != EAGAIN)
            fail("timer: %s", strerror(errno));
    } else if (connection->is_listener)
        accept_all(connection->fd);
    else if (events & EPOLLOUT && !(events & (EPOLLHUP | EPOLLERR)))
        flush(connection);
    else
        receive(connection);
}

static void listen_on_free_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t length = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (bind(fd, (struct sockaddr *)&address, length) < 0 || listen(fd, 4096) < 0 ||
        getsockname(fd, (struct sockaddr *)&address, &length) < 0)
        fail("cannot listen: %s", strerror(errno));
    new_connection(fd, true);
    printf("listens on http://127.0.0.1:%d\n", ntohs(address.sin_port));
}

int main(int count, char **words)
{
    if (count < 2)
        fail("usage: %s SCRIPT [LISTENERS]", words[0]);
    load_script(words[1]);
    epoll_fd = epoll_create1(0);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event ticks = {.events = EPOLLIN}, ready[BATCH];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &ticks);
    for (int listeners = count > 2 ? atoi(words[2]) : 1; listeners > 0; listeners--)
        listen_on_free_port();
    fflush(stdout);
    for (;;) {
        int some = epoll_wait(epoll_fd, ready, BATCH, -1);
        for (int i = 0; i < some; i++)
            handle(ready[i].data.ptr, ready[i].events);
        send_due();
    }
}
