/* control.c finds and opens the control block and the real module, once per instance. */
#include "faultp11.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Where things are: from the sidecar file, else from the environment. */
struct settings {
    char *module, *control, *softhsm2_conf, *pin_pad;
};

static struct module instance;

void complain(const char *format, ...)
{
    char line[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    fprintf(stderr, "faultp11: %s\n", line);
}

static void set(char **field, const char *value)
{
    free(*field);
    *field = strdup(value);
}

/* Reads NAME=value lines; false when there is no such file. An unknown name is an error, not a guess. */
static bool read_sidecar(const char *so_path, struct settings *s)
{
    char line[4096 + 64];
    snprintf(line, sizeof line, "%s.conf", so_path);
    FILE *f = fopen(line, "re");
    if (!f)
        return false;
    while (fgets(line, sizeof line, f)) {
        line[strcspn(line, "\r\n")] = '\0';
        if (strncmp(line, "module=", 7) == 0)
            set(&s->module, line + 7);
        else if (strncmp(line, "control=", 8) == 0)
            set(&s->control, line + 8);
        else if (strncmp(line, "softhsm2_conf=", 14) == 0)
            set(&s->softhsm2_conf, line + 14);
        else if (strncmp(line, "pinpad=", 7) == 0)
            set(&s->pin_pad, line + 7);
        else if (line[0] != '\0' && line[0] != '#')
            complain("%s.conf: cannot understand the line %s", so_path, line);
    }
    fclose(f);
    return true;
}

/* The sidecar lies beside this file, by the name it was loaded under or by its real name. */
static void find_settings(struct settings *s)
{
    Dl_info self;
    if (dladdr(&instance, &self) && self.dli_fname) {
        if (read_sidecar(self.dli_fname, s))
            return;
        char *resolved = realpath(self.dli_fname, NULL);
        bool found = resolved && read_sidecar(resolved, s);
        free(resolved);
        if (found)
            return;
    }
    const char *module_env = getenv("FAULTP11_MODULE"), *control_env = getenv("FAULTP11_CONTROL");
    if (module_env)
        set(&s->module, module_env);
    if (control_env)
        set(&s->control, control_env);
}

static bool alive(uint64_t pid) { return pid != 0 && (kill((pid_t)pid, 0) == 0 || errno != ESRCH); }

/* Takes an entry that is free, or that of a process that is dead. */
static struct process *enter(struct control *c)
{
    for (int i = 0; i < MAX_PROCESSES; i++) {
        struct process *p = &c->processes[i];
        uint64_t pid = atomic_load(&p->pid);
        if (alive(pid) || !atomic_compare_exchange_strong(&p->pid, &pid, (uint64_t)getpid()))
            continue;
        atomic_store(&p->open_sessions, 0);
        atomic_store(&p->in_flight, 0);
        for (int fn = 0; fn < FN_COUNT; fn++) {
            atomic_store(&p->calls_in_flight[fn], 0);
            atomic_store(&p->calls_hung[fn], 0);
        }
        return p;
    }
    complain("%d processes use the module at once: raise MAX_PROCESSES", MAX_PROCESSES);
    return NULL;
}

int64_t sessions_of_all(void)
{
    int64_t open = 0;
    for (int i = 0; i < MAX_PROCESSES; i++) {
        struct process *p = &instance.control->processes[i];
        if (p == instance.self || alive(atomic_load(&p->pid)))
            open += atomic_load(&p->open_sessions);
    }
    return open;
}

static struct control *open_control(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0) {
        complain("opening the control file %s: %s", path, strerror(errno));
        if (fd >= 0)
            close(fd);
        return NULL;
    }
    struct control *c = MAP_FAILED;
    if ((size_t)st.st_size == sizeof *c)
        c = mmap(NULL, sizeof *c, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (c == MAP_FAILED || c->magic != CONTROL_MAGIC || c->version != CONTROL_VERSION || c->size != sizeof *c) {
        complain("the control file %s is not one of this version: make a new one with faultp11.Create", path);
        return NULL;
    }
    return c;
}

/* RTLD_LOCAL, so that two real modules in one process do not find each other's symbols. */
static CK_FUNCTION_LIST_PTR open_real(const char *path)
{
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        complain("loading the real module: %s", dlerror());
        return NULL;
    }
    CK_C_GetFunctionList get;
    *(void **)&get = dlsym(handle, "C_GetFunctionList");
    CK_FUNCTION_LIST_PTR list = NULL;
    if (!get || get(&list) != CKR_OK || !list) {
        complain("%s gives no PKCS#11 function list", path);
        return NULL;
    }
    return list;
}

static void set_up(void)
{
    struct settings s = {0};
    find_settings(&s);
    if (!s.module || !s.control)
        complain("which module, which control file? Name both in <this file>.conf (module=, control=) or in the "
                 "environment (FAULTP11_MODULE, FAULTP11_CONTROL)");
    else if ((instance.control = open_control(s.control)) != NULL && (instance.self = enter(instance.control)) != NULL)
        instance.real = open_real(s.module);
    instance.softhsm2_conf = s.softhsm2_conf;
    instance.pin_pad = s.pin_pad;
    free(s.module);
    free(s.control);
}

const struct module *module(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, set_up);
    return &instance;
}
