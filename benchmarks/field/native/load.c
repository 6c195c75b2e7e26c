/* Sends requests and reads the answers; one thread, so many connections that are kept open.
 *
 *     load --port P --bodies FILE --requests N [--NAME VALUE]...     (the names: see `options`)
 *
 * Without a rate every connection sends its next request when it has its answer. With one, requests
 * are due at even distances whatever comes back, and an answer's time counts from when its request
 * was due, so that waiting for a free connection is not left out.
 *
 * FILE is a row of bodies, each a line "body PLACE LENGTH" and its bytes. From PLACE on (unless it
 * is -1) every second byte, eight in all, becomes a digit of the conversation's number: no two are
 * equal. A conversation is so many bodies in a row as it has turns; its requests follow one another
 * on one connection.
 *
 * It says "connected" when all connections stand, begins when a line comes in, says what came out as
 * one line of JSON, and closes its connections when its input ends: so that whoever measures a server
 * can leave out what connecting costs. An answer counts as an error unless its status is 200,
 * the marker stands in its body and it has as many events as it should.
 */
#define _GNU_SOURCE
#include "message.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define BATCH 256
#define DIGITS 8
#define RETRIES 3

static struct options {
    const char *port, *method, *path, *bodies, *marker;
    const char *requests, *connections, *turns; /* requests: a multiple of the turns */
    const char *rate;                           /* requests a second; 0: as fast as answers come */
    const char *first;                          /* number of the first conversation */
    const char *sessions;                       /* how many x-session-id go round; 0: none is sent */
    const char *events, *interval_us;           /* of every stream: how many, how far apart */
    const char *limit_s;                        /* what is unfinished by then is an error */
} options = {
    .method = "POST", .path = "/generate", .marker = "", .requests = "1", .connections = "1",
    .turns = "1", .rate = "0", .first = "0", .sessions = "0", .events = "0", .interval_us = "0",
    .limit_s = "60",
};

static const struct name {
    const char *name, **value;
} names[] = {
    {"--port", &options.port},         {"--method", &options.method},
    {"--path", &options.path},         {"--bodies", &options.bodies},
    {"--marker", &options.marker},     {"--requests", &options.requests},
    {"--connections", &options.connections}, {"--turns", &options.turns},
    {"--rate", &options.rate},         {"--first", &options.first},
    {"--sessions", &options.sessions}, {"--events", &options.events},
    {"--interval-us", &options.interval_us}, {"--limit-s", &options.limit_s},
};

struct body {
    long place;
    size_t length;
    const char *data;
};

/* Figures in nanoseconds. */
struct figures {
    int64_t *values;
    size_t count, room;
};

struct connection {
    int fd;
    bool is_busy, is_fresh; /* fresh: it has not answered anything yet */
    long conversation, turn;
    int retries;
    int64_t started;
    size_t sent, events;
    struct bytes request;
    struct message answer;
};

static struct body *bodies;
static long body_count, requests, turns, first, sessions, event_count;
static int64_t gap, interval, begun;
static struct connection *connections;
static long connection_count, issued, answered, errors, reconnects;
static size_t bytes_read;
static struct figures latencies, first_bytes, delays;
static char first_error[160];
static int epoll_fd, timer_fd;
static char scratch[1 << 18];

/* ---- figures ---- */

static void note(struct figures *figures, int64_t value)
{
    if (figures->count == figures->room) {
        figures->room = figures->room ? 2 * figures->room : 1024;
        figures->values = realloc(figures->values, figures->room * sizeof value);
    }
    figures->values[figures->count++] = value;
}

static int compare(const void *left, const void *right)
{
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

static double percentile_ms(struct figures *figures, double percent)
{
    if (figures->count == 0)
        return 0;
    qsort(figures->values, figures->count, sizeof *figures->values, compare);
    size_t place = figures->count * percent / 100;
    return figures->values[place < figures->count ? place : figures->count - 1] / 1e6;
}

static void note_error(const char *words, const struct message *answer)
{
    errors++;
    if (first_error[0])
        return;
    int shown = answer->body.length < 100 ? answer->body.length : 100;
    snprintf(first_error, sizeof first_error, "%s, status %d: %.*s", words, answer->status, shown,
             answer->body.length ? answer->body.data : "");
    for (char *at = first_error; *at; at++) /* what JSON would need escaped */
        if (*at < ' ' || *at > '~' || *at == '"' || *at == '\\')
            *at = '\'';
}

/* ---- sending ---- */

static void watch(struct connection *connection, int action, bool wants_room)
{
    struct epoll_event event = {.events = EPOLLIN | (wants_room ? EPOLLOUT : 0)};
    event.data.ptr = connection;
    if (epoll_ctl(epoll_fd, action, connection->fd, &event) < 0)
        fail("epoll: %s", strerror(errno));
}

static void open_connection(struct connection *connection)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(options.port))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int one = 1;
    connection->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(connection->fd, (struct sockaddr *)&address, sizeof address) < 0)
        fail("cannot connect: %s", strerror(errno));
    fcntl(connection->fd, F_SETFL, O_NONBLOCK);
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    connection->is_fresh = true;
    watch(connection, EPOLL_CTL_ADD, false);
}

static void write_request(struct connection *connection)
{
    const struct body *body = NULL;
    long number = first + connection->conversation;
    if (body_count > 0)
        body = &bodies[(number * turns + connection->turn) % body_count];
    char head[512], session[64] = "";
    if (sessions > 0)
        snprintf(session, sizeof session, "x-session-id: s%08ld\r\n", number % sessions);
    int length = snprintf(head, sizeof head,
                          "%s %s HTTP/1.1\r\nhost: 127.0.0.1:%s\r\ncontent-type: application/json\r\n"
                          "%scontent-length: %zu\r\n\r\n",
                          options.method, options.path, options.port, session,
                          body ? body->length : 0);
    struct bytes *request = &connection->request;
    request->length = 0;
    append(request, head, length);
    if (body == NULL)
        return;
    append(request, body->data, body->length);
    char digits[32];
    snprintf(digits, sizeof digits, "%0*ld", DIGITS, number % 100000000);
    for (int i = 0; body->place >= 0 && i < DIGITS; i++)
        request->data[length + body->place + 2 * i] = digits[i];
}

static void flush(struct connection *connection)
{
    const struct bytes *request = &connection->request;
    while (connection->sent < request->length) {
        ssize_t done = send(connection->fd, request->data + connection->sent,
                            request->length - connection->sent, MSG_NOSIGNAL);
        if (done < 0) {
            if (errno == EAGAIN)
                watch(connection, EPOLL_CTL_MOD, true);
            return; /* a connection that fails tells so when it is read */
        }
        connection->sent += done;
    }
}

static void send_again(struct connection *connection)
{
    connection->sent = connection->events = 0;
    reset(&connection->answer, true);
    flush(connection);
}

static void begin(struct connection *connection, int64_t started)
{
    connection->is_busy = true;
    connection->started = started;
    connection->retries = 0;
    issued++;
    write_request(connection);
    send_again(connection);
}

/* The connection is free: its next turn, or the next conversation, if one is due. */
static void go_on(struct connection *connection)
{
    static long taken;
    connection->is_busy = false;
    int64_t now = now_ns(), due = gap > 0 ? begun + taken * gap : now;
    if (++connection->turn < turns)
        begin(connection, now);
    else if (taken * turns < requests && due <= now) {
        connection->conversation = taken++;
        connection->turn = 0;
        begin(connection, due);
    } else
        connection->turn = turns; /* nothing is left of its conversation */
}

/* ---- receiving ---- */

static void reconnect(struct connection *connection)
{
    close(connection->fd);
    reconnects++;
    open_connection(connection);
}

static void finish(struct connection *connection, const char *problem)
{
    const struct message *answer = &connection->answer;
    size_t marker = strlen(options.marker);
    if (problem == NULL && answer->status != 200)
        problem = "refused";
    if (problem == NULL && marker && !memmem(answer->body.data, answer->body.length, options.marker, marker))
        problem = "another answer";
    if (problem == NULL && event_count > 0 && connection->events != (size_t)event_count)
        problem = "another number of events";
    if (problem != NULL)
        note_error(problem, answer);
    note(&latencies, now_ns() - connection->started);
    answered++;
    if (answer->closes || answer->phase != COMPLETE)
        reconnect(connection);
    else
        connection->is_fresh = false;
    go_on(connection);
}

/* Events end in an empty line; `from`: where the body ended before. */
static void count_events(struct connection *connection, size_t from)
{
    const struct bytes *body = &connection->answer.body;
    int64_t since = now_ns() - connection->started;
    for (size_t at = from ? from : 1; at < body->length; at++)
        if (body->data[at] == '\n' && body->data[at - 1] == '\n')
            note(&delays, since - (int64_t)connection->events++ * interval);
}

static void closed(struct connection *connection)
{
    bool is_answered = connection->answer.phase == UNTIL_CLOSE;
    bool is_stale = connection->answer.head_length == 0 && connection->retries < RETRIES;
    if (!connection->is_busy)
        reconnect(connection);
    else if (is_stale && !connection->is_fresh) {
        connection->retries++;
        reconnect(connection);
        send_again(connection);
    } else
        finish(connection, is_answered ? NULL : "closed");
}

static void receive(struct connection *connection)
{
    struct message *answer = &connection->answer;
    ssize_t got = recv(connection->fd, scratch, sizeof scratch, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0 || !connection->is_busy) {
        closed(connection);
        return;
    }
    size_t had = answer->body.length;
    feed(answer, scratch, got);
    bytes_read += got;
    if (had == 0 && answer->body.length > 0)
        note(&first_bytes, now_ns() - connection->started);
    if (event_count > 0)
        count_events(connection, had);
    if (answer->phase == BROKEN)
        finish(connection, "no HTTP");
    else if (answer->phase == COMPLETE)
        finish(connection, NULL);
}

static void handle(struct connection *connection, uint32_t events)
{
    if (connection == NULL) { /* the timer: something is due for a free connection */
        uint64_t times;
        if (read(timer_fd, &times, sizeof times) < 0 && errno != EAGAIN)
            fail("timer: %s", strerror(errno));
        static long next;
        for (long i = 0; i < connection_count && times > 0; i++, next++)
            if (!connections[next % connection_count].is_busy) {
                go_on(&connections[next % connection_count]);
                times--;
            }
        return;
    }
    if (events & EPOLLOUT) {
        watch(connection, EPOLL_CTL_MOD, false);
        flush(connection);
    }
    if (events & ~EPOLLOUT)
        receive(connection);
}

/* ---- the whole ---- */

static void read_options(int count, char **words)
{
    for (int i = 1; i + 1 < count; i += 2) {
        const struct name *name = names, *end = names + sizeof names / sizeof *names;
        while (name < end && strcmp(name->name, words[i]) != 0)
            name++;
        if (name == end)
            fail("no such option: %s", words[i]);
        *name->value = words[i + 1];
    }
    if (options.port == NULL || count % 2 == 0)
        fail("usage: %s --port P [--NAME VALUE]...", words[0]);
    turns = atol(options.turns);
    requests = atol(options.requests);
    connection_count = atol(options.connections);
    first = atol(options.first);
    sessions = atol(options.sessions);
    event_count = atol(options.events);
    interval = atol(options.interval_us) * 1000;
    gap = atof(options.rate) > 0 ? SECOND / atof(options.rate) : 0;
}

static void read_bodies(void)
{
    if (options.bodies == NULL)
        return;
    struct bytes file = read_file(options.bodies);
    for (char *at = file.data; at < file.data + file.length; body_count++) {
        bodies = realloc(bodies, (body_count + 1) * sizeof *bodies);
        struct body *body = &bodies[body_count];
        if (sscanf(at, "body %ld %zu", &body->place, &body->length) != 2)
            fail("%s: no body at byte %td", options.bodies, at - file.data);
        body->data = strchr(at, '\n') + 1;
        at = (char *)body->data + body->length;
    }
}

static void start_timer(void)
{
    struct epoll_event ticks = {.events = EPOLLIN};
    struct itimerspec every = {
        .it_interval = {.tv_sec = gap / SECOND, .tv_nsec = gap % SECOND},
        .it_value = {.tv_nsec = 1},
    };
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &ticks);
    timerfd_settime(timer_fd, 0, &every, NULL);
}

static void run(void)
{
    struct epoll_event ready[BATCH];
    int64_t deadline = begun + atof(options.limit_s) * SECOND;
    while (answered < requests) {
        int64_t left = deadline - now_ns();
        if (left <= 0)
            break;
        int some = epoll_wait(epoll_fd, ready, BATCH, left / 1000000 + 1);
        for (int i = 0; i < some; i++)
            handle(ready[i].data.ptr, ready[i].events);
    }
    if (answered < requests) {
        static struct message none;
        long unfinished = requests - answered;
        note_error("not answered in time", &none);
        errors += unfinished - 1;
    }
}

static void print_figures(double seconds)
{
    printf("{\"requests\":%ld,\"answered\":%ld,\"errors\":%ld,\"reconnects\":%ld,", requests,
           answered, errors, reconnects);
    printf("\"seconds\":%.6f,\"bytes\":%zu,\"events\":%zu,", seconds, bytes_read, delays.count);
    printf("\"p50_ms\":%.4f,\"p99_ms\":%.4f,", percentile_ms(&latencies, 50),
           percentile_ms(&latencies, 99));
    printf("\"first_byte_p50_ms\":%.4f,\"first_byte_p99_ms\":%.4f,",
           percentile_ms(&first_bytes, 50), percentile_ms(&first_bytes, 99));
    printf("\"event_p50_ms\":%.4f,\"event_p99_ms\":%.4f,", percentile_ms(&delays, 50),
           percentile_ms(&delays, 99));
    printf("\"first_error\":\"%s\"}\n", first_error);
}

int main(int count, char **words)
{
    read_options(count, words);
    read_bodies();
    epoll_fd = epoll_create1(0);
    connections = calloc(connection_count, sizeof *connections);
    for (long i = 0; i < connection_count; i++)
        open_connection(&connections[i]);
    puts("connected");
    fflush(stdout);
    getchar();
    begun = now_ns();
    for (long i = 0; i < connection_count; i++)
        connections[i].turn = turns;
    if (gap > 0)
        start_timer();
    for (long i = 0; gap == 0 && i < connection_count; i++)
        go_on(&connections[i]);
    run();
    print_figures((now_ns() - begun) / 1e9);
    fflush(stdout);
    while (getchar() != EOF)
        ;
    return 0;
}
