# shellcheck shell=bash
# Sourced by the sbatch files in this folder. `keep_going COMMAND…` runs a training step and handles its exit
# code by the same rules as `sparface submit`:
#
#   0                        done
#   2                        user error: the job fails, and the log says why
#   75, USR1, USR2, TERM     stopped on request: the job is requeued
#   anything else            requeued too, but at most RETRIES times in a row without a new checkpoint
#
# A job that was cancelled, or that SLURM has already requeued, is left alone.

RETRIES=${RETRIES:-3}
JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}
NOTES=.$SLURM_JOB_NAME-$JOB # .began and .failures

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# hashed, so concurrent jobs rarely collide, and different at each restart, because a dying process may still
# hold the previous port
MASTER_PORT=$((10000 + $(echo "$JOB ${SLURM_RESTART_COUNT:-0}" | cksum | cut -d " " -f 1) % 22768))
SPARFACE_RESTARTS=${SLURM_RESTART_COUNT:-0} # above 0: wait for a run that the previous attempt still locks
export MASTER_ADDR MASTER_PORT SPARFACE_RESTARTS

trap : TERM # on a requeue, wait until srun has ended: an orphan would end the next attempt's step

keep_going() {
    touch "$NOTES.began"
    "$@"
    local code=$?
    case $code in
    0 | 2) rm -f "$NOTES".*; exit $code ;;
    75 | 138 | 140 | 143) ;; # 128 + USR1, USR2, TERM
    *) count_failure "$code" "$(out_of "$@")" ;;
    esac
    local heard=$SECONDS asked=
    until lost; do
        if is_ours; then
            heard=$SECONDS asked=${asked:-$SECONDS}
            timeout 20 scontrol requeue "$JOB" # ends this script
            [ $((SECONDS - asked)) -gt 60 ] && give_up "SLURM does not requeue the job"
        fi
        [ $((SECONDS - heard)) -gt 1800 ] && give_up "SLURM has not answered for 30 minutes"
        sleep 5
    done
    exit $code
}

# Fail, so the job does not occupy its nodes idly.
give_up() {
    echo "giving up: $1; submit the job again to resume from the last checkpoint" >&2
    exit 1
}

# Print the folder in --out FOLDER or --out=FOLDER.
out_of() {
    local word previous=
    for word; do
        [ "$previous" = --out ] && echo "$word"
        [[ $word == --out=* ]] && echo "${word#--out=}"
        previous=$word
    done
}

# Give up after too many failures without a checkpoint newer than the attempt.
count_failure() {
    if [ -n "$(find "$2/checkpoints" -maxdepth 1 -name 'step-*' ! -name 'step-*[!0-9]*' -newer "$NOTES.began" 2>/dev/null)" ]; then
        : >"$NOTES.failures"
    fi
    echo "$1" >>"$NOTES.failures"
    if [ "$(wc -l <"$NOTES.failures")" -gt "$RETRIES" ]; then
        echo "giving up after $RETRIES retries without progress" >&2
        exit "$1"
    fi
}

life() { timeout 20 scontrol show job --oneliner "$JOB"; }
is_ours() { life | grep -q "JobState=RUNNING .*Restarts=${SLURM_RESTART_COUNT:-0} "; }
# Whether the job was cancelled or already requeued; false if SLURM cannot be reached.
lost() { life | grep -q JobState= && ! is_ours; }
