/* Hides AVX-512, VNNI, AVX-VNNI and AMX from a process, so that INT8 libraries choose the kernels
 * that they run on an AVX2 machine. For the benchmark only: Linux on x86-64, a CPU with CPUID
 * faulting (flag `cpuid_fault`).
 *
 *     cc -O2 -shared -fPIC -Wl,-z,initfirst mask_cpuid.c -o mask_cpuid.so -ldl
 *     LD_PRELOAD=./mask_cpuid.so program
 *
 * The kernel makes CPUID raise SIGSEGV (arch_prctl). The handler runs the instruction for the
 * program, clears the bits to hide and steps over it. The setting is inherited by threads and forks
 * and reset by execve, after which the preloaded constructor sets it again.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(n) (1u << (n))

/* CPUID leaf 7, subleaf 0: AVX-512 F DQ IFMA PF ER CD BW VL; VBMI VBMI2 VNNI BITALG VPOPCNTDQ;
 * 4VNNIW 4FMAPS VP2INTERSECT, AMX-BF16, AVX-512 FP16, AMX-TILE AMX-INT8. */
static const uint32_t hidden_7_0_ebx =
    BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31);
static const uint32_t hidden_7_0_ecx = BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14);
static const uint32_t hidden_7_0_edx =
    BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25);
/* Subleaf 1: AVX-VNNI, AVX-512 BF16, AMX-FP16, AVX-IFMA; AVX-VNNI-INT8, AVX-NE-CONVERT,
 * AMX-COMPLEX, AVX-VNNI-INT16, AVX10. */
static const uint32_t hidden_7_1_eax = BIT(4) | BIT(5) | BIT(21) | BIT(23);
static const uint32_t hidden_7_1_edx = BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19);

typedef int (*sigaction_function)(int, const struct sigaction *, struct sigaction *);
static sigaction_function libc_sigaction;
static struct sigaction wanted; /* what the program itself asked for on SIGSEGV */
static int active;

static int set_faulting(int on)
{
    return (int)syscall(SYS_arch_prctl, ARCH_SET_CPUID, on ? 0UL : 1UL);
}

static int change_action(int number, const struct sigaction *action, struct sigaction *old)
{
    if (!libc_sigaction)
        libc_sigaction = (sigaction_function)dlsym(RTLD_NEXT, "sigaction");
    return libc_sigaction(number, action, old);
}

static void answer_cpuid(greg_t *registers)
{
    uint32_t leaf = (uint32_t)registers[REG_RAX], subleaf = (uint32_t)registers[REG_RCX];
    uint32_t a, b, c, d;
    set_faulting(0);
    __cpuid_count(leaf, subleaf, a, b, c, d);
    set_faulting(1);
    if (leaf == 7 && subleaf == 0) {
        b &= ~hidden_7_0_ebx;
        c &= ~hidden_7_0_ecx;
        d &= ~hidden_7_0_edx;
    } else if (leaf == 7 && subleaf == 1) {
        a &= ~hidden_7_1_eax;
        d &= ~hidden_7_1_edx;
    }
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
    registers[REG_RIP] += 2; /* length of the instruction 0F A2 */
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    /* A faulting CPUID is a general protection fault: the kernel sends those as SI_KERNEL, and the
     * code at the instruction pointer is readable. */
    if (info->si_code == SI_KERNEL) {
        const uint8_t *code = (const uint8_t *)registers[REG_RIP];
        if (code[0] == 0x0f && code[1] == 0xa2) {
            answer_cpuid(registers);
            return;
        }
    }
    if (wanted.sa_flags & SA_SIGINFO) {
        wanted.sa_sigaction(number, info, context);
    } else if (wanted.sa_handler != SIG_DFL && wanted.sa_handler != SIG_IGN) {
        wanted.sa_handler(number);
    } else {
        struct sigaction fatal;
        memset(&fatal, 0, sizeof fatal);
        fatal.sa_handler = SIG_DFL;
        change_action(SIGSEGV, &fatal, NULL);
        raise(number);
    }
}

/* Crash reporters (Python's faulthandler among them) install a handler for SIGSEGV. It must not
 * replace ours: it is remembered and called for true faults. */
int sigaction(int number, const struct sigaction *action, struct sigaction *old)
{
    if (number != SIGSEGV || !active)
        return change_action(number, action, old);
    struct sigaction before = wanted;
    if (action)
        wanted = *action;
    if (old)
        *old = before;
    return 0;
}

sighandler_t signal(int number, sighandler_t handler)
{
    struct sigaction action, old;
    memset(&action, 0, sizeof action);
    action.sa_handler = handler;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    return sigaction(number, &action, &old) ? SIG_ERR : old.sa_handler;
}

/* 1 when the process no longer sees VNNI or AVX-512: lets the benchmark check what it measures. */
int mask_cpuid_active(void)
{
    uint32_t a, b, c, d;
    __cpuid_count(7, 0, a, b, c, d);
    if ((b & hidden_7_0_ebx) || (c & hidden_7_0_ecx) || (d & hidden_7_0_edx))
        return 0;
    if (a == 0)
        return active;
    __cpuid_count(7, 1, a, b, c, d);
    return active && !(a & hidden_7_1_eax);
}

__attribute__((constructor)) static void start(void)
{
    struct sigaction ours;
    memset(&ours, 0, sizeof ours);
    ours.sa_sigaction = on_fault;
    ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigemptyset(&ours.sa_mask);
    if (change_action(SIGSEGV, &ours, &wanted) == 0)
        active = set_faulting(1) == 0;
    if (!active)
        change_action(SIGSEGV, &wanted, NULL);
}
