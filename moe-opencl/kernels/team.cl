// A team of 32 work items has a token. Expert e belongs to lane e % 32, so that a lane's sum is one of the 32 strided partial sums,
// which are then halved 16, 8, 4, 2, 1. A group has two teams, which take the same steps, since barriers are the group's: a team
// without a token of its own goes through the last one's steps and writes nothing.
#define TEAM 32
#define TEAM_ITEMS 64
#define BY_TEAM kernel __attribute__((reqd_work_group_size(TEAM_ITEMS, 1, 1)))

FN uint team_lane(void) { return get_local_id(0) % TEAM; }
FN uint team_token(void) { return get_group_id(0) * (TEAM_ITEMS / TEAM) + get_local_id(0) / TEAM; }

// What all lanes' values make together; `shared` has TEAM_ITEMS places.
#define ACROSS(name, type, both)                                        \
    FN type name(type value, local type *shared) {                      \
        uint at = get_local_id(0), lane = team_lane();                  \
        barrier(CLK_LOCAL_MEM_FENCE);                                   \
        shared[at] = value;                                             \
        for (uint by = TEAM / 2; by > 0; by /= 2) {                     \
            barrier(CLK_LOCAL_MEM_FENCE);                               \
            if (lane < by) shared[at] = both(shared[at], shared[at + by]); \
        }                                                               \
        barrier(CLK_LOCAL_MEM_FENCE);                                   \
        return shared[at - lane];                                       \
    }
#define PLUS(a, b) ((a) + (b))
ACROSS(team_sum, float, PLUS)
ACROSS(team_max, float, fmax)
ACROSS(team_most, ulong, max)
