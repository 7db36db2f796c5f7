"""From frames to one consistent map; start at `mapper.Mapper`."""
