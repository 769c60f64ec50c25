# What the guest's tasks share.

failures=0

# check WHAT COMMAND...: does it succeed?
check() {
    what=$1
    shift
    if said=$("$@" 2>&1); then
        echo "ok: $what"
    else
        echo "FAILED: $what: $* ended with $?: $said"
        failures=$((failures + 1))
    fi
}

# refused WHAT COMMAND...: does it fail, as it should?
refused() {
    what=$1
    shift
    if said=$("$@" 2>&1); then
        echo "FAILED: $what: $* was not refused: $said"
        failures=$((failures + 1))
    else
        echo "ok: $what"
    fi
}

# equal WHAT EXPECTED FOUND
equal() {
    if [ "$2" = "$3" ]; then
        echo "ok: $1"
    else
        echo "FAILED: $1: expected '$2', found '$3'"
        failures=$((failures + 1))
    fi
}

# await WHAT COMMAND...: polls for up to 30 s until it succeeds.
await() {
    what=$1
    shift
    tries=0
    until said=$("$@" 2>&1); do
        tries=$((tries + 1))
        if [ $tries -ge 300 ]; then
            echo "FAILED: $what: not within 30 s: $*: $said"
            failures=$((failures + 1))
            return 1
        fi
        usleep 100000
    done
    echo "ok: $what"
}

# disk NAME: waits for a block device.
disk() {
    await "$1 appears" test -b "/dev/$1"
}

# heads: the namespaces' disks, without the hidden one behind each path.
heads() {
    ls /sys/block | grep '^nvme[0-9]*n[0-9]*$'
}

# controllers N: waits until N controllers are live.
controllers() {
    await "$1 controllers live" live_controllers "$1"
}

live_controllers() {
    found=0
    for state in /sys/class/nvme/nvme*/state; do
        [ -e "$state" ] && [ "$(cat "$state")" = live ] && found=$((found + 1))
    done
    [ $found -eq "$1" ]
}

# paths N: waits until N controllers are live, with as many paths to namespaces.
paths() {
    await "$1 paths" live_paths "$1"
}

live_paths() {
    path_count "$1" && live_controllers "$1"
}

path_count() {
    [ "$(ls /sys/block | grep -c '^nvme[0-9]*c[0-9]*n[0-9]*$')" -eq "$1" ]
}

# phase NAME: tells the host on the console, and waits for its go.
phase() {
    printf '\nPHASE %s\n' "$1" >/dev/console
    read -r _ </dev/console
}

# verify JOB DEVICE: one of the fio jobs on a block device.
verify() {
    if said=$(FIO_DEVICE=$2 fio --output-format=normal "/fio/$1.fio" 2>&1); then
        echo "ok: fio $1 on $2: $(echo "$said" | grep -o 'IOPS=[^,]*' | tr '\n' ' ')"
    else
        echo "FAILED: fio $1 on $2: $said"
        failures=$((failures + 1))
    fi
}

# fio_counts FILE: of fio's JSON, for each job a line NAME ERR READS WRITES, the
# I/Os that ended.
fio_counts() {
    awk -F '[ :,"]+' '
        $2 == "jobname" { job = $3; sum = 0 }
        $2 == "error" { err = $3 }
        $2 == "total_ios" && ++sum == 1 { reads = $3 }
        $2 == "total_ios" && sum == 2 { print job, err, reads, $3 }
    ' "$1"
}

# passes DISK [OPTION...]: starts fio, which checks what it writes pass by pass
# until passes_end.
passes() {
    fio_disk=$1
    shift
    rm -f /tmp/stop
    FIO_DEVICE=/dev/$fio_disk fio --trigger-file=/tmp/stop --trigger=true "$@" \
        /fio/passes.fio >/tmp/fio.log 2>&1 &
    fio_job=$!
    io_flows "I/O under way" 100
}

# io_flows WHAT N: waits for N more I/Os of the disk that fio works on.
io_flows() {
    await "$1" io_beyond $(($(io_count) + $2)) || head -n 8 /tmp/fio.log
}

io_count() {
    read -r reads _ _ _ writes _ <"/sys/block/$fio_disk/stat"
    echo $((reads + writes))
}

io_beyond() {
    kill -0 $fio_job && [ "$(io_count)" -ge "$1" ]
}

# passes_end: fio ends, having seen no error; then all is read back once more.
passes_end() {
    await "fio wrote and checked all at least once" io_beyond 2048
    >/tmp/stop
    wait $fio_job
    equal "fio's exit status is 0" 0 $?
    check "fio saw no error" grep -q 'err= 0:' /tmp/fio.log
    equal "fio complained of nothing" "" "$(grep -iE 'verify:|error|err=( *[1-9])' /tmp/fio.log)"
    echo "fio: $(grep -E 'issued rwts' /tmp/fio.log | tr -s ' ')"
    verify reread /dev/$fio_disk
}

# complaints: prints what no healthy guest's kernel log holds; true if any.
# A task that provokes a line puts a pattern for it into /tmp/allowed.
complaints() {
    touch /tmp/allowed
    dmesg | grep -E \
        -e 'nvme.*([Ee]rror|[Ff]ail|timeout|timed out|[Aa]bort|[Ii]nvalid|bogus|[Dd]isabl|dead|[Rr]eset|[Rr]emov|not ready|[Ii]dentical|duplicate)' \
        -e 'pci .*(can.t|fail|conflict|no space|invalid)' \
        -e 'ACPI.*(Error|BIOS bug)' \
        -e 'BUG:|WARNING:|Oops|Call Trace|I/O error|EXT4-fs error|nobody cared' |
        grep -v -E -f /tmp/allowed -e '^$' -e 'Documentation/admin-guide/hw-vuln|/admin-guide/hw-vuln/'
}

# go_on: ends the task if anything failed, for what follows would only wait in vain.
go_on() {
    [ $failures -eq 0 ] || done_checking
}

# done_checking: the task's exit status.
done_checking() {
    [ $failures -eq 0 ]
    exit
}
