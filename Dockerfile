# The mapping node as a container; the installation commands are those of docs/robot.md (a test compares them).
#     docker build -t fast3r_ros .
#     docker run --rm --net=host --ipc=host fast3r_ros --ros-args -r image:=/camera/image_raw
# With an NVIDIA GPU:
#     docker build -t fast3r_ros --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#     docker run --rm --net=host --ipc=host --gpus all fast3r_ros --ros-args -r image:=/camera/image_raw
ARG ROS_DISTRO=jazzy
FROM ros:${ROS_DISTRO} AS workspace

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /ros_ws
COPY . src/fast3r_ros

# What rosdep resolves has the versions of the distribution.
# hadolint ignore=DL3008
RUN apt-get update && \
    apt-get install -y --no-install-recommends python3-venv && \
    rosdep update --rosdistro "$ROS_DISTRO" && \
    rosdep install --from-paths src --ignore-src -y --skip-keys python3-torch && \
    rm -rf /var/lib/apt/lists/*

# Any PyTorch from 2.4 on works; its index offers what fits the GPU.
# hadolint ignore=DL3013,SC1091
RUN python3 -m venv --system-site-packages .venv && \
    touch .venv/COLCON_IGNORE && \
    . .venv/bin/activate && \
    pip install 'torch>=2.6' --index-url "$TORCH_INDEX" && \
    . "/opt/ros/$ROS_DISTRO/setup.bash" && \
    colcon build --packages-select fast3r_ros --cmake-args -DPython3_EXECUTABLE="$VIRTUAL_ENV/bin/python" -DBUILD_TESTING=OFF

RUN useradd --uid 1001 --create-home robot
USER 1001

FROM workspace AS robot
STOPSIGNAL SIGINT
ENTRYPOINT ["/bin/bash", "-c", ". /ros_ws/install/setup.bash && exec /ros_ws/install/fast3r_ros/lib/fast3r_ros/mapping_node \"$@\"", "mapping_node"]
