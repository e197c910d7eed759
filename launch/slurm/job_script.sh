#!/bin/bash
# The shell around the ranks of a job. launch/slurm/script.py fills in what begins with %; submitit puts its #SBATCH
# lines before the first part, and srun, which starts the ranks, between the two parts.
# ---- before the ranks
# A line of the site's set-up that fails is named and ends the job; scripts that it sources may fail inside.
trap 'code=$?; [ "${#BASH_SOURCE[@]}" -gt 1 ] || { echo "dist-train: error: setup: $BASH_COMMAND: exit code $code; mend it in the profile, or add || true"; exit %FAILED; }' ERR
%setup
trap - ERR
%exports
# The last member of an array has the array's own job id: name members in full.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}; job=${job:-$SLURM_JOB_ID}
runs=(%runs); run=${runs[${SLURM_ARRAY_TASK_ID:-0}]}
%python -m launch.restart begin "$run" "$job"
ended=
trap ended=1 TERM  # cancelled, out of time or preempted: let the ranks save first
# ---- after the ranks
code=$?
state=$(scontrol -o show job "$job")
if [ -n "$ended" ] && [[ $state != *Reason=TimeLimit* && ! $state =~ PreemptTime=[0-9] ]]; then
    %python -m launch.restart cancelled "$run" "$job"
else
    %python -m launch.restart decide "$run" "$job" "$code" %starts %shards; code=$?
    [ "$code" != %STOPPED ] || { scontrol requeue "$job" && sleep 60; }
fi
exit "$code"
