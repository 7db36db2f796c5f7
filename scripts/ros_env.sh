# Bring the virtual environment and the built package into this shell (bash):
#     . scripts/ros_env.sh                    Jazzy from PyPI, or the ROS 2 distribution that is sourced
#     DISTRO=kilted; . scripts/ros_env.sh     Kilted from PyPI
# Then `python -m fast3r_ros.ros.mapping_node`, `import fast3r_ros.msg` and every test work.

fast3r_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
fast3r_suffix=$("${PYTHON:-python3}" "$fast3r_root/scripts/setup_environment.py" --print-suffix --distro "${DISTRO:-}") || return

# The wheels restart Python once with their own library path and remember that in a variable; it belongs to
# one environment only.
unset _ROS_WHEELS_BOOTSTRAP_COMPLETE
. "$fast3r_root/.venv$fast3r_suffix/bin/activate"
case $fast3r_suffix in
*-system) ;;
*) export AMENT_PREFIX_PATH=$VIRTUAL_ENV ;;
esac
. "$fast3r_root/install$fast3r_suffix/local_setup.bash"

# Large images and clouds need a larger shared-memory segment than the default of Fast DDS, whose version 2
# (Jazzy) has another name for the variable.
export FASTRTPS_DEFAULT_PROFILES_FILE=$fast3r_root/config/fastdds.xml
export FASTDDS_DEFAULT_PROFILES_FILE=$fast3r_root/config/fastdds.xml
unset fast3r_root fast3r_suffix
