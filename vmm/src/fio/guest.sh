# Runs the phases of a job file, on the host or in a guest, and sends what they write.
#
# sh guest.sh FOLDER DEVICE FROM COUNT
#   FOLDER  has the phases as 0.fio, 1.fio, …
#   DEVICE  for phases without a file N.own, which name none; "-" finds the first namespace
#           and those with a file N.reads must not write
#   FROM    number of the first phase to run
#   COUNT   of the phases
#
# On standard output:
#   system KERNEL CPUS BYTES DEVICE
#   ready N           before phase N; waits for a line on standard input, as after the next
#   file NAME BYTES   and so many bytes
#   ended N STATUS    after phase N, with the files before it
#   stopped WHY       nothing can run here
# On standard error: what fio says, and where it is (--eta).

folder=$1 device=$2 n=$3 count=$4
work=$(mktemp -d "${TMPDIR:-/tmp}/berth-fio.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

# The namespace with the lowest NSID of the controller with the lowest PCI address. With native multipath
# a disk belongs to a subsystem, whose controllers are in its folder.
first() {
    for disk in /sys/block/nvme[0-9]*n[0-9]*; do
        name=${disk##*/}
        case $name in nvme*c*n*) continue ;; esac
        [ -r "$disk/nsid" ] || continue
        read -r nsid <"$disk/nsid"
        for address in "$disk"/device/address "$disk"/device/nvme[0-9]*/address; do
            [ -r "$address" ] || continue
            read -r slot <"$address"
            printf '%s %08d %s\n' "$slot" "$nsid" "$name"
        done
    done | sort | head -n 1 | cut -d ' ' -f 3
}

# It may still be on its way.
tries=0
while [ "$device" = - ]; do
    name=$(first)
    if [ -n "$name" ] && [ -b "/dev/$name" ]; then
        device=/dev/$name
    elif [ $tries -ge 100 ]; then
        echo "stopped no NVMe disk appeared in the guest within 10 s"
        exit 1
    else
        tries=$((tries + 1))
        usleep 100000 2>/dev/null || sleep 0.1
    fi
done

bytes=0
if [ -b "$device" ]; then
    read -r sectors <"/sys/class/block/$(basename "$(readlink -f "$device")")/size"
    bytes=$((sectors * 512))
elif [ -f "$device" ]; then
    bytes=$(wc -c <"$device")
fi
echo "system $(uname -r) $(grep -c '^processor' /proc/cpuinfo) $bytes $device"

send() {
    [ -f "$2" ] || return 0
    echo "file $1 $(wc -c <"$2" | tr -d ' ')"
    cat "$2"
}

while [ "$n" -lt "$count" ]; do
    echo "ready $n"
    read -r _ || exit 1
    mkdir "$work/$n"
    cd "$work/$n" || exit 1
    place=--filename=$device
    [ -f "$folder/$n.own" ] && place=
    # Or fio would lengthen a file that is too short for what a job reads.
    safe=
    [ -f "$folder/$n.reads" ] && safe=--readonly
    fio ${place:+"$place"} $safe --group_reporting=1 --write_iops_log=log --write_bw_log=log --write_lat_log=log \
        --log_avg_msec=1000 --lat_percentiles=1 --clat_percentiles=0 --per_job_logs=0 --output-format=json+ --output=fio.json \
        --eta=always --eta-interval=1000ms --eta-newline=1000ms "$folder/$n.fio" </dev/null >&2
    status=$?
    send fio.json fio.json
    send iops log_iops.log
    send bandwidth log_bw.log
    send latency log_lat.log
    cd /
    rm -rf "${work:?}/$n"
    echo "ended $n $status"
    read -r _ || exit 1
    n=$((n + 1))
done
