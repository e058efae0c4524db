#!/usr/bin/env bash
# A cluster on this machine, for trying things out:
#
#   scripts/cluster.sh start [N] | stop | status | kill ID | restart ID | roll | add | clean
#
# Nodes listen on 127.0.0.1:7101 and the ports after it (KONTIKI_PORT changes the first one); data, logs and pid files
# lie under ./.cluster (KONTIKI_DIR changes that). The number of nodes and the first port are remembered there.
# `roll` restarts all nodes one by one while they serve, with the binary as it is then: a rolling upgrade.
# KONTIKI_BIN names a binary to use instead of building one. Needs bash 3.2 and cargo, nothing else.
set -u

HOST=127.0.0.1
NODES_DEFAULT=3
NODES_MAX=15           # more voters than this help nobody, least of all on one machine
WAIT_READY_SECONDS=30  # a first start has to create files and elect a leader; a slow disk takes its time
WAIT_GONE_SECONDS=5    # a process that was told to end needs milliseconds
REPLY_SECONDS=2        # a node that takes longer to answer /health is not serving
LOG_TAIL_LINES=15

SELF="scripts/cluster.sh"
TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P) || exit 1
MARKER=.kontiki-cluster  # says that the directory is ours, and holds what has to be remembered

fail() { printf '%s: %s\n' "$SELF" "$1" >&2; exit "${2:-1}"; }
usage() { fail "$1; usage: $SELF start [N] | stop | status | kill ID | restart ID | roll | add | clean" 2; }
is_number() { case $1 in '' | *[!0-9]*) return 1 ;; *) [ ${#1} -le 5 ] ;; esac; }
no_more_words() { [ "$2" -eq 0 ] || usage "$1 takes no further words"; }

# --- the directory and what it remembers ---

DIR=${KONTIKI_DIR:-./.cluster}
if [ -d "$DIR" ]; then DIR=$(cd "$DIR" && pwd -P) || exit 1; fi
FIRST=0 # members the cluster began with
NODES=0 # nodes now, those that were added included
PORT=0

remembered() { sed -n "s/^$1=\([0-9][0-9]*\)\$/\1/p" "$DIR/$MARKER"; }

recall() {
    [ -f "$DIR/$MARKER" ] || return 1
    PORT=$(remembered port) FIRST=$(remembered first) NODES=$(remembered nodes)
    if ! is_number "$PORT" || ! is_number "$FIRST" || ! is_number "$NODES" || [ "$FIRST" -lt 1 ] || [ "$NODES" -lt "$FIRST" ]; then
        fail "$DIR/$MARKER is damaged: it should hold port=, first= and nodes="
    fi
}

# Written beside and renamed, so that an interrupted script leaves the old numbers or the new ones.
remember() {
    if ! printf 'port=%s\nfirst=%s\nnodes=%s\n' "$PORT" "$FIRST" "$NODES" >"$DIR/$MARKER.new" || ! mv -f "$DIR/$MARKER.new" "$DIR/$MARKER"; then
        fail "cannot write $DIR/$MARKER"
    fi
}

need_cluster() { recall || fail "no cluster in $DIR; begin one with: $SELF start"; }

need_id() {
    [ $# -eq 2 ] || usage "$1 takes one ID"
    need_cluster
    if ! is_number "$2" || [ "$2" -lt 1 ] || [ "$2" -gt "$NODES" ]; then fail "no node '$2': ids are 1..$NODES" 2; fi
    ID=$((10#$2))
}

address() { printf '%s:%s' "$HOST" $((PORT + $1 - 1)); }

# The addresses of nodes 1..$1, with commas.
addresses() {
    local i list=
    for ((i = 1; i <= $1; i++)); do list="$list${list:+,}$(address "$i")"; done
    printf '%s' "$list"
}

# --- processes ---

command_line() {
    if [ -r "/proc/$1/cmdline" ]; then tr '\0' ' ' <"/proc/$1/cmdline"; else ps -ww -o args= -p "$1"; fi 2>/dev/null
}

# Prints the pid that was written down for node $1.
noted_pid() {
    local pid
    [ -f "$DIR/n$1.pid" ] || return 1
    pid=$(cat "$DIR/n$1.pid" 2>/dev/null)
    case $pid in '' | *[!0-9]*) return 1 ;; esac
    printf '%s' "$pid"
}

# Prints the pid of node $1 when it runs. A pid may have been given to another program since it was written down: only a
# process whose command line names the node's data directory is the node. In the middle of an exec it has none for a moment.
running_pid() {
    local pid line tries=20
    pid=$(noted_pid "$1") || return 1
    line=$(command_line "$pid")
    while [ -z "$line" ] && [ "$tries" -gt 0 ] && ! is_gone "$pid"; do
        tries=$((tries - 1))
        sleep 0.05
        line=$(command_line "$pid")
    done
    case "$line " in *" --data $DIR/n$1 "*) printf '%s' "$pid" ;; *) return 1 ;; esac
}

# Whether process $1 is gone: nothing of that number, or a dead child that its parent has not waited for. Linux shows the
# first thread's death while another one is still inside the kernel, so the last thread counts.
is_gone() {
    kill -0 "$1" 2>/dev/null || return 0
    if [ -d /proc/self ]; then
        case "$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p; s/^Threads:[[:space:]]*//p' "/proc/$1/status" 2>/dev/null | tr '\n' ' ')" in
            '' | 'Z 1 ' | X*) return 0 ;;
        esac
    else
        case "$(ps -o stat= -p "$1")" in '' | Z*) return 0 ;; esac
    fi
    return 1
}

# Waits until the processes named are gone.
wait_gone() {
    local tries=$((WAIT_GONE_SECONDS * 20)) pid
    for pid in "$@"; do
        until is_gone "$pid"; do
            [ "$tries" -gt 0 ] || return 1
            tries=$((tries - 1))
            sleep 0.05
        done
    done
}

# Ends the nodes named. The process holds nothing that needs a farewell: TERM is the polite word, KILL the one that is
# always obeyed.
end_nodes() {
    local i pid pids=
    for i in "$@"; do
        if pid=$(running_pid "$i"); then
            pids="$pids $pid"
            kill -TERM "$pid" 2>/dev/null
        fi
    done
    # shellcheck disable=SC2086 # lists of numbers
    if ! wait_gone $pids; then
        for i in "$@"; do
            if pid=$(running_pid "$i"); then kill -KILL "$pid" 2>/dev/null; fi
        done
        wait_gone $pids || fail "a node does not end, even by SIGKILL; see $DIR/n*.pid"
    fi
    for i in "$@"; do rm -f "$DIR/n$i.pid"; done
}

all_ids() { local i; for ((i = 1; i <= NODES; i++)); do printf '%s ' "$i"; done; }

BIN=
find_binary() {
    BIN=${KONTIKI_BIN:-}
    if [ -n "$BIN" ]; then
        case $BIN in /*) ;; *) BIN=$PWD/$BIN ;; esac
        [ -x "$BIN" ] || fail "KONTIKI_BIN: $BIN is not a program"
        return
    fi
    BIN=${CARGO_TARGET_DIR:-$TOP/target}/release/kontiki
    case $BIN in /*) ;; *) BIN=$PWD/$BIN ;; esac
    # `start` asks cargo, who knows whether the binary is up to date; the other verbs build only what is missing.
    if [ "$1" = build ] || [ ! -x "$BIN" ]; then
        if command -v cargo >/dev/null 2>&1; then
            cargo build --release --quiet --manifest-path "$TOP/Cargo.toml" --bin kontiki >&2 || fail "cargo build --release failed"
        elif [ ! -x "$BIN" ]; then
            fail "cargo is not installed (see https://rustup.rs), and there is no $BIN"
        fi
    fi
    [ -x "$BIN" ] || fail "cargo build left no $BIN"
}

# Nodes that the cluster has let go for ever (`member remove`): their directories say so. Needs the binary.
REMOVED=" "
find_removed() {
    local i
    for i in $(all_ids); do
        if [ -d "$DIR/n$i" ] && ! running_pid "$i" >/dev/null && "$BIN" inspect identity "$DIR/n$i" 2>/dev/null | grep -q 'removed from its cluster'; then
            REMOVED="$REMOVED$i "
        fi
    done
}
is_removed() { case $REMOVED in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
member_ids() { local i; for i in $(all_ids); do is_removed "$i" || printf '%s ' "$i"; done; }
# Addresses of the members but for node $1, with commas.
other_addresses() {
    local i list=
    for i in $(member_ids); do [ "$i" -eq "$1" ] || list="$list${list:+,}$(address "$i")"; done
    printf '%s' "$list"
}

# Starts node $1 unless it runs. KONTIKI_* variables are settings of `serve` and are passed on, except the script's own
# and those that would contradict the command line.
launch() {
    local id=$1 address detach=nohup way=--join members
    if running_pid "$id" >/dev/null; then return; fi
    address=$(address "$id")
    if (exec 3<>"/dev/tcp/$HOST/${address##*:}") 2>/dev/null; then
        [ -z "$STARTED" ] || printf '%s: node(s)%s were started and are left running; end them with: %s stop\n' "$SELF" "$STARTED" "$SELF" >&2
        fail "node $id: $address is taken by another process; end it, or choose other ports: $SELF clean, then KONTIKI_PORT=N $SELF start"
    fi
    if [ "$id" -le "$FIRST" ]; then way=--peers members=$(addresses "$FIRST"); else members=$(other_addresses "$id"); fi
    if command -v setsid >/dev/null 2>&1; then detach="setsid nohup"; fi
    # shellcheck disable=SC2086 # $detach is one or two words on purpose
    env -u KONTIKI_PORT -u KONTIKI_DIR -u KONTIKI_BIN -u KONTIKI_ADVERTISE -u KONTIKI_PEERS -u KONTIKI_JOIN $detach \
        "$BIN" serve --data "$DIR/n$id" --listen "$address" \
        "$way" "$members" </dev/null >>"$DIR/n$id.log" 2>&1 &
    printf '%s\n' $! >"$DIR/n$id.pid"
    disown
    STARTED="$STARTED $id"
}

# --- waiting ---

# Prints the status code of GET $2 at address $1, nothing when there is no answer.
http_status() {
    (
        exec 3<>"/dev/tcp/${1%:*}/${1##*:}" || exit 1
        printf 'GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n' "$2" "$1" >&3
        IFS=' ' read -r -t "$REPLY_SECONDS" _ code _ <&3 && printf '%s' "$code"
    ) 2>/dev/null
}

log_tail() { [ ! -s "$DIR/n$1.log" ] || tail -n "$LOG_TAIL_LINES" "$DIR/n$1.log" | sed "s/^/  n$1.log: /" >&2; }

# A node that was just started and is gone has said why in its log.
need_alive() {
    local i
    for i in "$@"; do
        is_gone "$(noted_pid "$i")" || continue
        rm -f "$DIR/n$i.pid"
        log_tail "$i"
        fail "node $i ($(address "$i")) ended; the last lines of $DIR/n$i.log are above"
    done
}

# Waits until the function $1 answers yes; the other arguments are the nodes that must stay alive meanwhile.
wait_until() {
    local check=$1 end=$((SECONDS + WAIT_READY_SECONDS)) i
    shift
    until need_alive "$@" && "$check"; do
        if [ "$SECONDS" -ge "$end" ]; then
            for i in "$@"; do log_tail "$i"; done
            return 1
        fi
        sleep 0.05
    done
}

answers() { [ -n "$(http_status "$(address "$1")" /health)" ]; }
serves() { [ "$(http_status "$(address "$1")" /health)" = 200 ]; }

# Every node that was just started answers, and one that leads serves.
LEADER=
leader_serves() {
    local i a
    for i in $STARTED; do answers "$i" || return 1; done
    for i in $(all_ids); do
        a=$(address "$i")
        if [ "$(http_status "$a" /health/leader)" = 200 ] && serves "$i"; then LEADER=$a; return; fi
    done
    return 1
}
node_answers() { answers "$ID"; }
node_serves() { serves "$ID"; }

# --- verbs ---

STARTED=
ID=0

start() {
    local count=${1:-} port=${KONTIKI_PORT:-} i all
    [ $# -le 1 ] || usage "start takes one number at most"
    if [ -n "$count" ]; then
        if ! is_number "$count" || [ "$count" -lt 1 ] || [ "$count" -gt "$NODES_MAX" ]; then usage "'$count' is not a number of nodes from 1 to $NODES_MAX"; fi
        count=$((10#$count))
    fi
    if [ -n "$port" ]; then
        if ! is_number "$port" || [ "$port" -lt 1 ] || [ $((10#$port + NODES_MAX)) -gt 65536 ]; then fail "KONTIKI_PORT: '$port' is not a port from 1 to $((65536 - NODES_MAX))" 2; fi
        port=$((10#$port))
    fi
    if recall; then
        if [ -n "$count" ] && [ "$count" -ne "$FIRST" ] && [ "$count" -ne "$NODES" ]; then
            fail "$DIR holds a cluster of $NODES nodes, not $count; add a node with: $SELF add, or begin anew with: $SELF clean" 2
        fi
        if [ -n "$port" ] && [ "$port" -ne "$PORT" ]; then fail "$DIR holds a cluster that begins at port $PORT, not $port" 2; fi
        find_binary build
        find_removed
    else
        if [ -d "$DIR" ] && [ -n "$(ls -A "$DIR")" ]; then fail "$DIR is not empty and not ours (it has no $MARKER); choose another KONTIKI_DIR"; fi
        find_binary build
        if ! mkdir -p "$DIR" || ! DIR=$(cd "$DIR" && pwd -P); then fail "cannot make the directory $DIR"; fi
        FIRST=${count:-$NODES_DEFAULT} NODES=${count:-$NODES_DEFAULT} PORT=${port:-7101}
        remember
    fi
    for i in $(member_ids); do launch "$i"; done
    # shellcheck disable=SC2086 # a list of numbers
    wait_until leader_serves $STARTED || fail "no leader serves after $WAIT_READY_SECONDS s; the logs are $DIR/n*.log"
    all=$(other_addresses 0)
    cat <<END
$(member_ids | wc -w | tr -d ' ') node(s) on $all, led by $LEADER; data and logs in $DIR

  $BIN cli -a $all ${KONTIKI_TOKEN_FILE:+--token-file "$KONTIKI_TOKEN_FILE" }put city Oslo
  printf 'GET city\r\nQUIT\r\n' | nc $HOST $PORT
  redis-cli -p $PORT GET city
  http://$HOST:$PORT/health in a browser

  $SELF status | kill ID | restart ID | roll | add | stop | clean
END
}

stop() {
    recall || { printf 'no cluster in %s\n' "$DIR"; return; }
    # shellcheck disable=SC2046 # a list of numbers
    end_nodes $(all_ids)
    printf 'stopped; the data stay in %s\n' "$DIR"
}

status() {
    local i
    need_cluster
    find_binary have
    find_removed
    for i in $(member_ids); do running_pid "$i" >/dev/null || printf 'node %s (%s) is not running\n' "$i" "$(address "$i")" >&2; done
    "$BIN" cli -a "$(other_addresses 0)" ${KONTIKI_TOKEN_FILE:+--token-file "$KONTIKI_TOKEN_FILE"} status
}

kill_node() {
    local pid
    pid=$(running_pid "$ID") || fail "node $ID is not running"
    kill -KILL "$pid" || fail "cannot kill process $pid"
    wait_gone "$pid" || fail "process $pid of node $ID does not end"
    rm -f "$DIR/n$ID.pid"
    printf 'killed node %s (%s)\n' "$ID" "$(address "$ID")"
}

# Waits for an answer only, not for a quorum: after a lost majority the first node back cannot have one.
restart() {
    find_binary have
    find_removed
    if is_removed "$ID"; then fail "node $ID was removed from the cluster for ever; take in a new one with: $SELF add"; fi
    end_nodes "$ID"
    launch "$ID"
    wait_until node_answers "$ID" || fail "node $ID does not answer after $WAIT_READY_SECONDS s"
    printf 'restarted node %s (%s)\n' "$ID" "$(address "$ID")"
}

others_serve() {
    local i
    for i in $(member_ids); do [ "$i" -eq "$ID" ] || serves "$i" || return 1; done
}
leader_id() {
    local i
    for i in $(member_ids); do
        if [ "$(http_status "$(address "$i")" /health/leader)" = 200 ]; then printf '%s' "$i"; return; fi
    done
    return 1
}
another_leads() { local leader; leader=$(leader_id) && [ "$leader" -ne "$ID" ]; }

# Never two nodes away at a time, and none that leads: followers first, then leadership moves, then the last one.
roll() {
    local leader i order=
    need_cluster
    find_binary build
    find_removed
    leader=$(leader_id) || fail "no node leads: nothing is restarted; see: $SELF status"
    for i in $(member_ids); do [ "$i" -eq "$leader" ] || order="$order $i"; done
    for ID in $order $leader; do
        wait_until others_serve || fail "the other nodes do not all serve after $WAIT_READY_SECONDS s: node $ID is not restarted"
        if [ -n "$(other_addresses "$ID")" ] && ! another_leads; then
            "$BIN" cli -a "$(other_addresses 0)" ${KONTIKI_TOKEN_FILE:+--token-file "$KONTIKI_TOKEN_FILE"} transfer >/dev/null || fail "node $ID does not hand leadership over: it is not restarted"
            wait_until another_leads || fail "no other node leads: node $ID is not restarted"
        fi
        end_nodes "$ID"
        launch "$ID"
        wait_until node_serves "$ID" || fail "node $ID does not serve after $WAIT_READY_SECONDS s; the others go on"
        printf 'restarted node %s (%s)\n' "$ID" "$(address "$ID")"
    done
}

# The new node counts from the moment it serves; until then a failed attempt leaves nothing but its log and directory,
# and the same command again continues there.
add() {
    need_cluster
    [ "$NODES" -lt "$NODES_MAX" ] || fail "$NODES_MAX nodes are the most that $SELF runs"
    find_binary have
    find_removed
    ID=$((NODES + 1))
    launch "$ID"
    if ! wait_until node_serves "$ID"; then
        end_nodes "$ID"
        fail "node $ID did not join within $WAIT_READY_SECONDS s"
    fi
    NODES=$ID
    remember
    printf 'added node %s (%s)\n' "$ID" "$(address "$ID")"
}

clean() {
    if ! recall; then
        [ ! -e "$DIR" ] || fail "$DIR is not ours (it has no $MARKER): not removed"
        printf 'no cluster in %s\n' "$DIR"
        return
    fi
    # shellcheck disable=SC2046 # a list of numbers
    end_nodes $(all_ids)
    rm -rf "$DIR" || fail "cannot remove $DIR"
    printf 'removed %s\n' "$DIR"
}

[ $# -ge 1 ] || usage "no verb given"
verb=$1
shift
case $verb in
    start) start "$@" ;;
    stop | status | add | roll | clean) no_more_words "$verb" $#; "$verb" ;;
    kill) need_id "$verb" "$@"; kill_node ;;
    restart) need_id "$verb" "$@"; restart ;;
    *) usage "unknown verb '$verb'" ;;
esac
