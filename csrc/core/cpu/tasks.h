#pragma once

#include "vec.h"

// Queues that hand the tasks of one op to its threads.

namespace openmythos::cpu::OPENMYTHOS_ISA {

// Runs body(task, worker) for every task. A worker takes the next task as soon as it has finished one.
template <class Body>
static void for_tasks(const Threads& threads, int64_t tasks, const Body& body) {
    struct Queue {
        int64_t next, tasks;
        const Body* body;
    } queue{0, tasks, &body};
    if (tasks <= 0) return;
    threads.run(
        min_of(threads.count, tasks),
        [](void* context, int64_t worker) {
            Queue& q = *static_cast<Queue*>(context);
            for (int64_t task; (task = __atomic_fetch_add(&q.next, 1, __ATOMIC_RELAXED)) < q.tasks;)
                (*q.body)(task, worker);
        },
        &queue);
}

// As for_tasks, but odd workers start at the last task: where the tasks are of two kinds, one kind after the other,
// both kinds run at the same time.
template <class Body>
static void for_tasks_from_both_ends(const Threads& threads, int64_t tasks, const Body& body) {
    struct Queue {
        uint64_t taken;  // tasks from the start in the low half, from the end in the high half
        int64_t tasks;
        const Body* body;
    } queue{0, tasks, &body};
    if (tasks <= 0) return;
    threads.run(
        min_of(threads.count, tasks),
        [](void* context, int64_t worker) {
            Queue& q = *static_cast<Queue*>(context);
            uint64_t taken = __atomic_load_n(&q.taken, __ATOMIC_RELAXED);
            for (;;) {
                int64_t near = int64_t(taken & 0xffffffff), far = int64_t(taken >> 32);
                if (near + far >= q.tasks) return;
                uint64_t next = taken + (worker % 2 ? uint64_t(1) << 32 : 1);
                if (!__atomic_compare_exchange_n(&q.taken, &taken, next, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
                    continue;
                (*q.body)(worker % 2 ? q.tasks - 1 - far : near, worker);
                taken = __atomic_load_n(&q.taken, __ATOMIC_RELAXED);
            }
        },
        &queue);
}

}  // namespace openmythos::cpu::OPENMYTHOS_ISA
