#!/bin/bash
# kernel.sh ORACLE_DIR WORK_DIR [NAME...]: the whole round of tests/kernel.rs with the Linux driver.
#   1. kernel-make writes volumes of several geometries; we read, change and empty them
#   2. we write volumes, and crash over them; the kernel and fsck.ocfs2 judge
#   3. kernel-mount-check mounts all that we wrote or changed: contents, attributes, its own writes, fsck
# One line a volume; the status tells whether all were fine. Needs about 10 GB and half an hour.
set -u
[ $# -ge 2 ] || { sed -n '2,6p' "$0" >&2; exit 2; }
oracle=$1 work=$(mkdir -p "$2" && cd "$2" && pwd) bad=0
shift 2
cd "$(dirname "$0")/../../.." || exit 2
PATH=$PATH:/usr/sbin
all=sparse,unwritten,inline-data,extended-slotmap,metaecc,xattr,indexed-dirs,refcount,discontig-bg
cargo test -q -p fs --test kernel --no-run || exit 1

run() { cargo test -q -p fs --test kernel -- --ignored --exact --nocapture "$1"; }
verdict() { if [ "$2" = 0 ]; then echo "ok    $1"; else echo "WRONG $1 (see $3)"; bad=1; fi; }
vm() { flock /tmp/vm.lock "$@"; }

# judge NAME: the kernel's account of a volume against ours, and its own use of it.
judge() {
  local log=$work/$1.kernel rc
  vm "$oracle/kernel-mount-check" --fsck "$work/$1.img" "$work/$1.sha256" > "$log" 2>&1
  rc=$?
  # Its write test sets an attribute, which the oldest format does not have; nothing else may be wrong.
  case $1 in *plain*) [ "$(grep -ac '^FAIL' "$log")" = 1 ] && grep -aq '^FAIL: mkdir/setfattr' "$log" &&
    grep -aq '^LISTING: .* 0 differences' "$log" && rc=0 ;; esac
  sed -n '/^== manifest/,/^== end of manifest/{/^==/!p}' "$log" | grep -av '^E' > "$log.lines"
  # After a replay Linux keeps the root inode as it read it before: its own counts are off by then as well.
  case $1 in *-crash) drop='\t\.$' ;; *) drop='^$' ;; esac
  diff -a <(grep -avP "$drop" "$log.lines") <(grep -avP "$drop" "$work/$1.manifest") >> "$log" || rc=1
  verdict "$1: the kernel mounts it" "$rc" "$log"
}

# kernel NAME MEGABYTES [options of kernel-make] -- [options of mkfs.ocfs2]
kernel() {
  local name=$1 size=$2 flags=() image
  shift 2
  while [ "$1" != -- ]; do flags+=("$1"); shift; done
  shift
  case " ${wanted[*]-} " in "  " | *" $name "*) ;; *) return ;; esac
  image=$work/$name.img
  vm "$oracle/kernel-make" --many 3000 "${flags[@]}" --manifest "$work/$name.manifest" \
    "$image" "$size" -M local -L oracle "$@" > "$work/$name.make" 2>&1
  truncate -s 0 "$work/$name.empty" && truncate -s "${size}M" "$work/$name.empty"
  mkfs.ocfs2 -q -x -F -M local -L oracle "$@" "$work/$name.empty" < /dev/null || bad=1
  export OCELOT_KERNEL_IMAGE=$image OCELOT_KERNEL_MANIFEST=$work/$name.manifest
  export OCELOT_OUT_DIR=$work OCELOT_EMPTY_IMAGE=$work/$name.empty
  run what_the_kernel_wrote_is_read > "$work/$name.read" 2>&1
  verdict "$name: read" $? "$work/$name.read"
  run what_the_kernel_wrote_is_changed_and_deleted > "$work/$name.change" 2>&1
  verdict "$name: changed and deleted" $? "$work/$name.change"
  judge "$name-changed"
  judge "$name-emptied"
}

ours() {
  case " ${wanted[*]-} " in "  " | *" $1 "*) ;; *) return ;; esac
  OCELOT_OUT_DIR=$work OCELOT_ONLY=$1 run volumes_are_written_for_the_kernel > "$work/$1.write" 2>&1
  verdict "$1: written, and repaired by fsck.ocfs2 after a crash" $? "$work/$1.write"
  judge "$1"
  judge "$1-crash"
}

wanted=("$@")
kernel default 320 -- -N 2 -b 4096 -C 4096 --fs-features=$all
kernel acl 320 --opts acl -- -N 2 -b 4096 -C 4096 --fs-features=$all
kernel dirty 320 --dirty -- -N 2 -b 4096 -C 4096 --fs-features=$all
kernel b512 320 -- -N 2 -b 512 -C 4096 --fs-features=$all
kernel b512dirty 320 --dirty -- -N 2 -b 512 -C 4096 --fs-features=$all
kernel b1k 320 -- -N 2 -b 1024 -C 4096 --fs-features=$all
kernel c32k 512 -- -N 2 -b 4096 -C 32768 -J size=8M --fs-features=$all
kernel c1m 6000 -- -N 2 -b 2048 -C 1048576 -J size=16M --fs-features=$all
kernel slots 400 -- -N 8 -b 4096 -C 4096 -J size=8M --fs-features=$all
kernel noinline 320 -- -N 2 -b 4096 -C 4096 --fs-features=$all,noinline-data
kernel noindex 320 -- -N 2 -b 4096 -C 4096 --fs-features=$all,noindexed-dirs
kernel noecc 320 -- -N 2 -b 4096 -C 4096 --fs-features=$all,nometaecc
kernel norefcount 320 -- -N 2 -b 4096 -C 4096 --fs-features=$all,norefcount
# Without sparse files kernel-make itself reports what the format cannot do; the rest of its tree counts.
kernel nosparse 320 -- -N 2 -b 4096 -C 4096 \
  --fs-features=nosparse,nounwritten,norefcount,inline-data,extended-slotmap,metaecc,xattr,indexed-dirs
kernel plain 320 -- -N 2 -b 4096 -C 4096 \
  --fs-features=nosparse,nounwritten,noinline-data,nometaecc,noxattr,noindexed-dirs,norefcount,noextended-slotmap
for name in ours-default ours-b4k-c32k ours-b1k-c4k ours-b512-c4k ours-b2k-c1m ours-plain; do ours $name; done
exit $bad
