# shellcheck shell=sh
# /etc/profile.d/slurm-factory.sh: Slurm's commands for every login. LD_LIBRARY_PATH is not touched, nor needed.
case ":${PATH}:" in
*":@VIEW@/bin:"*) ;;
*) PATH="${PATH}:@VIEW@/bin:@VIEW@/sbin" ;;
esac
export PATH
case ":${MODULEPATH:-}:" in
*":@PACKAGE@/modules:"*) ;;
*) export MODULEPATH="${MODULEPATH:+${MODULEPATH}:}@PACKAGE@/modules" ;;
esac
