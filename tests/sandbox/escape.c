/* Runs inside a sandbox and tries to get out, or to do what is refused there: one line an attempt.
 *
 *     escape KIND SECRET READONLY PID ABSTRACT PORT ROOT_INODE
 *
 * KIND is "build" or "prepare". SECRET is a file of the host, READONLY a folder that is mounted read-only, PID a process
 * of the host, ABSTRACT the name of an abstract socket and PORT a port on which the host listens (0 where the network is
 * the host's and may be reached), ROOT_INODE the inode of
 * the host's root. Each line is "ok NAME" when the attempt failed, as it must, and "ESCAPED NAME" when it worked. The
 * last line is "done COUNT". Static, so that it needs nothing of the rootfs.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <pty.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

static int count;

static void tried(const char *name, int worked) {
    printf("%s %s\n", worked ? "ESCAPED" : "ok", name);
    fflush(stdout);
    count++;
}

static int opens(const char *path, int flags) {
    int fd = open(path, flags | O_CLOEXEC);
    if (fd < 0) return 0;
    close(fd);
    return 1;
}

/* A call that must fail with this errno and no other: EPERM from the kernel's own checks counts as well. */
static void refused(const char *name, long result, int want) {
    tried(name, result >= 0 || errno != want);
}

static void files(const char *secret, const char *read_only, long root_inode) {
    char path[4096];
    struct stat st;
    tried("read a file in the home of the host's user", opens(secret, O_RDONLY));
    snprintf(path, sizeof path, "/proc/1/root%s", secret);
    tried("the same through /proc/1/root", opens(path, O_RDONLY));
    snprintf(path, sizeof path, "/proc/1/cwd/..%s", secret);
    tried("the same through /proc/1/cwd", opens(path, O_RDONLY));
    snprintf(path, sizeof path, "/../../../../../../../..%s", secret);
    tried("the same through many ..", opens(path, O_RDONLY));
    tried("the root is the host's", stat("/", &st) == 0 && (long)st.st_ino == root_inode);
    snprintf(path, sizeof path, "%s/new", read_only);
    tried("write into a read-only mount", opens(path, O_WRONLY | O_CREAT));
    snprintf(path, sizeof path, "%s/file", read_only);
    tried("write a file of a read-only mount", opens(path, O_WRONLY));
    tried("truncate a file of a read-only mount", truncate(path, 0) == 0);
    tried("delete a file of a read-only mount", unlink(path) == 0);
    tried("change the mode of a file of a read-only mount", chmod(path, 0777) == 0);
    tried("rename a file out of a read-only mount", rename(path, "/tmp/taken") == 0);
    tried("hard link a file out of a read-only mount", link(path, "/tmp/linked") == 0);
    snprintf(path, sizeof path, "%s", read_only);
    tried("remount it read-write", mount(NULL, path, NULL, MS_REMOUNT | MS_BIND, NULL) == 0);
    tried("make a device of the disk", mknod("/tmp/disk", S_IFBLK | 0600, makedev(254, 0)) == 0 && opens("/tmp/disk", O_RDONLY));
    tried("make a device of the memory", mknod("/tmp/mem", S_IFCHR | 0600, makedev(1, 1)) == 0 && opens("/tmp/mem", O_RDONLY));
    struct { struct file_handle head; unsigned char bytes[128]; } handle = { .head = { .handle_bytes = 128 } };
    int mount_id;
    int has = name_to_handle_at(AT_FDCWD, "/", &handle.head, &mount_id, 0) == 0;
    int at = open("/", O_RDONLY | O_DIRECTORY);
    if (!has) handle.head.handle_bytes = 8, handle.head.handle_type = 1;
    tried("open a file by its handle", open_by_handle_at(at, &handle.head, O_RDONLY) >= 0 || errno != EPERM);
    /* ext4's root folder is inode 2, generation 0. */
    handle.head.handle_bytes = 8, handle.head.handle_type = 1;
    memcpy(handle.bytes, (uint32_t[]){2, 0}, 8);
    tried("open the disk's root by its handle", open_by_handle_at(at, &handle.head, O_RDONLY) >= 0);
    close(at);
}

static void kernel_files(void) {
    const char *write_only[] = {
        "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/kernel/shmmax", "/proc/sys/vm/drop_caches",
        "/proc/sys/fs/binfmt_misc/register", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity", "/proc/1/mem",
        "/sys/power/state", "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/unified/cgroup.procs", "/sys/fs/cgroup/pids/cgroup.procs",
    };
    char name[256], byte;
    for (size_t i = 0; i < sizeof write_only / sizeof *write_only; i++) {
        snprintf(name, sizeof name, "open %s for writing", write_only[i]);
        tried(name, opens(write_only[i], O_WRONLY));
    }
    const char *empty[] = { "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/latency_stats" };
    for (size_t i = 0; i < sizeof empty / sizeof *empty; i++) {
        int fd = open(empty[i], O_RDONLY);
        snprintf(name, sizeof name, "read %s", empty[i]);
        tried(name, fd >= 0 && read(fd, &byte, 1) > 0);
        if (fd >= 0) close(fd);
    }
    const char *bare[] = { "/sys/firmware", "/proc/acpi", "/proc/scsi", "/sys/devices/virtual/powercap" };
    for (size_t i = 0; i < sizeof bare / sizeof *bare; i++) {
        DIR *dir = opendir(bare[i]);
        int entries = 0;
        while (dir && readdir(dir)) entries++;
        if (dir) closedir(dir);
        snprintf(name, sizeof name, "look into %s", bare[i]);
        tried(name, entries > 2);
    }
}

static void processes(int outside) {
    char path[64], link_to[256];
    int seen = 0;
    DIR *proc = opendir("/proc");
    for (struct dirent *entry; proc && (entry = readdir(proc));) seen += entry->d_name[0] >= '1' && entry->d_name[0] <= '9';
    if (proc) closedir(proc);
    tried("see processes of the host", seen > 8);
    tried("signal a process of the host", kill(outside, 0) == 0);
    int map = open("/proc/1/uid_map", O_WRONLY);
    tried("map more ids", map >= 0 && write(map, "0 0 4294967295", 14) > 0);
    if (map >= 0) close(map);
    tried("signal everybody", kill(-outside, 0) == 0);
    int parent = getppid();
    /* Sent it is; were it taken, nobody would write the last line. */
    kill(1, SIGSTOP);
    kill(1, SIGKILL);
    tried("end the first process", access("/proc/1", F_OK) != 0);
    tried("trace the parent", ptrace(PTRACE_ATTACH, parent, 0, 0) == 0);
    tried("trace the first process", ptrace(PTRACE_SEIZE, 1, 0, 0) == 0);
    char buffer[8];
    struct iovec own = { buffer, 8 }, other = { (void *)0x400000, 8 };
    tried("read the first process's memory", process_vm_readv(1, &own, 1, &other, 1, 0) > 0);
    tried("read a process of the host", process_vm_readv(outside, &own, 1, &other, 1, 0) > 0);
    tried("the program of the first process", readlink("/proc/1/exe", link_to, sizeof link_to) > 0 || opens("/proc/1/exe", O_RDONLY));
    int fds = 0;
    for (int fd = 0; fd < 64; fd++) {
        snprintf(path, sizeof path, "/proc/1/fd/%d", fd);
        if (readlink(path, link_to, sizeof link_to) > 0) fds++;
    }
    tried("descriptors of the first process", fds > 0);
    tried("the environment of the first process", opens("/proc/1/environ", O_RDONLY));
    int pidfd = syscall(SYS_pidfd_open, 1, 0);
    tried("take a descriptor of the first process", pidfd >= 0 && syscall(SYS_pidfd_getfd, pidfd, 0, 0) >= 0);
    if (pidfd >= 0) close(pidfd);
    int leaked = 0;
    for (int fd = 3; fd < 1024; fd++)
        if (fcntl(fd, F_GETFD) >= 0) leaked++;
    tried("use a descriptor that leaked", leaked > 0);
}

static void terminal(void) {
    int master, slave;
    char byte = 'x';
    if (openpty(&master, &slave, NULL, NULL, NULL) != 0) {
        tried("no terminal could be made", 1);
        return;
    }
    refused("TIOCSTI", ioctl(slave, TIOCSTI, &byte), EPERM);
    refused("TIOCSTI with high bits", syscall(SYS_ioctl, slave, (unsigned long)TIOCSTI | 1UL << 32, &byte), EPERM);
    refused("TIOCLINUX", ioctl(slave, TIOCLINUX, &byte), EPERM);
    int tty = open("/dev/tty", O_RDWR);
    tried("TIOCSTI into the caller's terminal", tty >= 0 && ioctl(tty, TIOCSTI, &byte) == 0);
    close(master), close(slave);
}

static int connects(int family, int type, struct sockaddr *to, socklen_t length) {
    int fd = socket(family, type, 0);
    if (fd < 0) return 0;
    int worked = connect(fd, to, length) == 0 && (type != SOCK_DGRAM || send(fd, "x", 1, 0) == 1);
    close(fd);
    return worked;
}

static int reaches(const char *address, int port, int type) {
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port) };
    inet_pton(AF_INET, address, &to.sin_addr);
    return connects(AF_INET, type, (struct sockaddr *)&to, sizeof to);
}

static void network(const char *abstract, int port) {
    if (port != 0) {
        tried("tcp to the host's loopback", reaches("127.0.0.1", port, SOCK_STREAM));
        tried("tcp to the outside", reaches("192.0.2.1", 9, SOCK_STREAM));
        tried("udp to the outside", reaches("192.0.2.1", 9, SOCK_DGRAM));
        tried("udp to everybody", reaches("255.255.255.255", 9, SOCK_DGRAM));
    }
    struct sockaddr_un to = { .sun_family = AF_UNIX };
    strncpy(to.sun_path + 1, abstract, sizeof to.sun_path - 2);
    socklen_t length = offsetof(struct sockaddr_un, sun_path) + 1 + strlen(abstract);
    tried("an abstract socket of the host", connects(AF_UNIX, SOCK_STREAM, (struct sockaddr *)&to, length));
    refused("a socket of a virtual machine's host", socket(AF_VSOCK, SOCK_STREAM, 0), EAFNOSUPPORT);
    refused("a socket of the kernel's cryptography", socket(AF_ALG, SOCK_SEQPACKET, 0), EAFNOSUPPORT);
    tried("raw packets", socket(AF_PACKET, SOCK_RAW, htons(3)) >= 0 || socket(AF_INET, SOCK_RAW, 1) >= 0);
}

static int nested(void *flags) {
    (void)flags;
    _exit(mount("t", "/tmp", "tmpfs", 0, NULL) == 0 ? 0 : 1);
}

static void calls(void) {
    static char stack[65536];
    refused("mount", mount("t", "/tmp", "tmpfs", 0, NULL), EPERM);
    refused("unmount", umount2("/tmp", MNT_DETACH), EPERM);
    refused("uncover a file", umount2("/etc/passwd", MNT_DETACH), EPERM);
    refused("bind", mount("/", "/tmp", NULL, MS_BIND, NULL), EPERM);
    refused("fsopen", syscall(SYS_fsopen, "tmpfs", 0), EPERM);
    refused("open_tree", syscall(SYS_open_tree, AT_FDCWD, "/", 1), EPERM);
    refused("move_mount", syscall(SYS_move_mount, AT_FDCWD, "/tmp", AT_FDCWD, "/run", 0), EPERM);
    refused("mount_setattr", syscall(SYS_mount_setattr, AT_FDCWD, "/", 0, NULL, 0), EPERM);
    refused("pivot_root", syscall(SYS_pivot_root, "/tmp", "/tmp"), EPERM);
    refused("unshare a user namespace", unshare(CLONE_NEWUSER), EPERM);
    refused("unshare user and mounts", unshare(CLONE_NEWUSER | CLONE_NEWNS), EPERM);
    refused("unshare mounts", unshare(CLONE_NEWNS), EPERM);
    int child = clone(nested, stack + sizeof stack, CLONE_NEWUSER | CLONE_NEWNS | SIGCHLD, NULL);
    int status = 1;
    if (child > 0) waitpid(child, &status, 0);
    tried("clone a user namespace and mount in it", child > 0);
    tried("clone3", syscall(SYS_clone3, NULL, 0) >= 0 || errno != ENOSYS);
    int ns = open("/proc/1/ns/mnt", O_RDONLY);
    tried("join the first process's namespaces", ns >= 0 && setns(ns, 0) == 0);
    int pidfd = syscall(SYS_pidfd_open, getppid(), 0);
    refused("join the parent's", syscall(SYS_setns, pidfd, CLONE_NEWNS | CLONE_NEWPID), EPERM);
    if (pidfd >= 0) close(pidfd);
    refused("load a module", syscall(SYS_init_module, "", 0, ""), EPERM);
    refused("load a module from a file", syscall(SYS_finit_module, 0, "", 0), EPERM);
    refused("unload a module", syscall(SYS_delete_module, "loop", 0), EPERM);
    refused("kexec_file_load", syscall(SYS_kexec_file_load, 0, 0, 0, "", 0), EPERM);
    refused("keyctl", syscall(SYS_keyctl, 0, -3, 0), EPERM);
    refused("add_key", syscall(SYS_add_key, "user", "x", "x", 1, -3), EPERM);
    refused("request_key", syscall(SYS_request_key, "user", "x", NULL, -3), EPERM);
    refused("bpf", syscall(SYS_bpf, 0, NULL, 0), EPERM);
    refused("userfaultfd", syscall(SYS_userfaultfd, 1), EPERM);
    refused("perf_event_open", syscall(SYS_perf_event_open, NULL, 0, -1, -1, 0), EPERM);
    refused("fanotify", syscall(SYS_fanotify_init, 0, 0), EPERM);
    struct io_uring_params params = { 0 };
    refused("io_uring", syscall(SYS_io_uring_setup, 1, &params), ENOSYS);
    refused("the kernel's log", syscall(SYS_syslog, 3, NULL, 0), EPERM);
    refused("swap", syscall(SYS_swapon, "/tmp", 0), EPERM);
    refused("the clock", syscall(SYS_settimeofday, NULL, NULL), EPERM);
    refused("reboot", syscall(SYS_reboot, 0, 0, 0, NULL), EPERM);
    refused("accounting", syscall(SYS_acct, NULL), EPERM);
    tried("another host name", sethostname("x", 1) == 0);
}

#if defined(__x86_64__)
/* getpid by the 32-bit table, in a child: the process must be ended for it. */
static void other_abis(void) {
    int child = fork(), status = 0;
    if (child == 0) {
        long number = 20;
        __asm__ volatile("int $0x80" : "+a"(number) : : "memory", "r8", "r9", "r10", "r11");
        _exit(number > 0 ? 0 : 1);
    }
    waitpid(child, &status, 0);
    tried("a 32-bit call", !WIFSIGNALED(status) || WTERMSIG(status) != SIGSYS);
    child = fork();
    if (child == 0) {
        long number = 21; /* mount */
        __asm__ volatile("int $0x80" : "+a"(number) : "b"(0), "c"(0), "d"(0) : "memory", "r8", "r9", "r10", "r11");
        _exit(0);
    }
    waitpid(child, &status, 0);
    tried("a 32-bit mount", !WIFSIGNALED(status) || WTERMSIG(status) != SIGSYS);
    refused("x32's getpid", syscall(0x40000000 | 39), ENOSYS);
    refused("x32's mount", syscall(0x40000000 | 165, "t", "/tmp", "tmpfs", 0, 0), ENOSYS);
    refused("x32's ioctl", syscall(0x40000000 | 514, 0, TIOCSTI, "x"), ENOSYS);
    refused("ports", syscall(SYS_iopl, 3), EPERM);
}
#else
static void other_abis(void) {}
#endif

/* Last: from a folder outside of a second chroot, .. goes up to the true root, which must still be ours. */
static void chroot_out(const char *secret) {
    int up = open("/", O_RDONLY | O_DIRECTORY);
    int left = chroot("/tmp") == 0 && fchdir(up) == 0;
    for (int i = 0; left && i < 64; i++) left = chdir("..") == 0;
    tried("leave by a second chroot", left && chroot(".") == 0 && opens(secret, O_RDONLY));
}

int main(int argc, char **argv) {
    if (argc != 8) return 2;
    int build = strcmp(argv[1], "build") == 0;
    processes(atoi(argv[4]));
    files(argv[2], argv[3], atol(argv[7]));
    kernel_files();
    terminal();
    network(argv[5], atoi(argv[6]));
    calls();
    if (build) refused("kexec_load", syscall(SYS_kexec_load, 0, 0, NULL, 0), EPERM);
    other_abis();
    chroot_out(argv[2]);
    printf("done %d\n", count);
    return 0;
}
